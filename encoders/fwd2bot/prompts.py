"""The prompts: the chat template and the three instructions of the two passes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from encoders.base import EncoderDamaged, first_line

if TYPE_CHECKING:  # the NumPy reader need not wait for it
    from transformers import ProcessorMixin

IMAGE_PLACEHOLDER = "<image>"
PLAIN_TEMPLATE = "USER: {content}\n{instruction} ASSISTANT:"
CONTENT_HOLE, INSTRUCTION_HOLE = "{content}", "{instruction}"


@dataclass(frozen=True)
class Prompts:
    """Texts around the image, the query and the question; part of the encoder's fingerprint.

    template: wraps {content} (the image placeholder or a text) and {instruction}; if empty, the processor's
    own chat template or, if it has none, LLaVA's. image: the instruction of pass 1 over an image (Fwd2Bot,
    section 3). text: the same over a text. caption: the instruction of pass 2 for a caption.
    """

    template: str = ""
    image: str = "Summarize the image in a few words."
    text: str = "Summarize the text in a few words."
    caption: str = "Describe the image."


class PromptFrames(NamedTuple):
    """Whole prompts with holes. image: one image token and {instruction}. text: {content}, {instruction}."""

    image: str
    text: str

    @classmethod
    def of_template(cls, template: str, image_token: str) -> "PromptFrames":
        """The frames of a `Prompts.template`."""
        return cls(template.replace(CONTENT_HOLE, image_token), template)

    def fill_image(self, instruction: str) -> str:
        """The whole prompt over an image."""
        return self.image.replace(INSTRUCTION_HOLE, instruction)

    def fill_text(self, text: str, instruction: str) -> str:
        """The whole prompt over a text."""
        return self.text.replace(INSTRUCTION_HOLE, instruction).replace(CONTENT_HOLE, text)


def frame_prompts(template: str, processor: "ProcessorMixin") -> PromptFrames:
    """The frames of a template; raises EncoderDamaged if it fails or does not hold one image token."""
    image_token: str = processor.image_token  # type: ignore[attr-defined]
    if not template and processor.chat_template:
        try:
            frames = PromptFrames(*_apply_chat_template(processor))
        except Exception as error:  # a chat template is third-party code and may raise anything
            raise EncoderDamaged(
                f"The chat template cannot be used ({first_line(error)}): give the prompts a template"
            ) from error
    else:
        frames = PromptFrames.of_template(template or PLAIN_TEMPLATE, image_token)
    shown = frames.image.count(image_token)
    if shown != 1:
        raise EncoderDamaged(
            f"The prompts show {image_token} {shown} times for one image: give them a template that holds "
            f"{CONTENT_HOLE} once"
        )
    return frames


def _apply_chat_template(processor: "ProcessorMixin") -> tuple[str, str]:
    from transformers import ProcessorMixin

    contents: tuple[Any, ...] = (
        [{"type": "image"}, {"type": "text", "text": INSTRUCTION_HOLE}],
        [{"type": "text", "text": f"{CONTENT_HOLE}\n{INSTRUCTION_HOLE}"}],
    )
    image, text = (
        # Not the processor's own method: SmolVLM's asks its video processor how many frames to read.
        ProcessorMixin.apply_chat_template(
            processor, [{"role": "user", "content": content}], add_generation_prompt=True
        )
        for content in contents
    )
    return image, text
