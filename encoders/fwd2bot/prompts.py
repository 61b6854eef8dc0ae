"""What the model is told: the chat template and the three instructions of the two passes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from encoders.base import EncoderDamaged

if TYPE_CHECKING:  # a search from stored weights alone need not wait for it
    from transformers import ProcessorMixin

IMAGE_PLACEHOLDER = "<image>"
PLAIN_TEMPLATE = "USER: {content}\n{instruction} ASSISTANT:"
_CONTENT, _INSTRUCTION = "{content}", "{instruction}"


@dataclass(frozen=True)
class Prompts:
    """Texts around the image, the query and the question; part of the encoder's fingerprint.

    template: wraps a content (the image placeholder or a text) and an instruction; empty for the processor's
    own chat template or, where it has none, LLaVA's. image: the instruction of pass 1 over an image (Fwd2Bot,
    section 3). text: the same over a text. caption: pass 2.
    """

    template: str = ""
    image: str = "Summarize the image in a few words."
    text: str = "Summarize the text in a few words."
    caption: str = "Describe the image."


class PromptFrames(NamedTuple):
    """Whole prompts with holes: {instruction}, beside one image token; {content} and {instruction}."""

    image: str
    text: str

    @classmethod
    def of_template(cls, template: str, image_token: str) -> "PromptFrames":
        """The frames that a template of `Prompts` makes."""
        return cls(template.replace(_CONTENT, image_token), template)

    def fill_image(self, instruction: str) -> str:
        """What is said over an image."""
        return self.image.replace(_INSTRUCTION, instruction)

    def fill_text(self, text: str, instruction: str) -> str:
        """What is said over a text."""
        return self.text.replace(_INSTRUCTION, instruction).replace(_CONTENT, text)


def frame_prompts(template: str, processor: "ProcessorMixin") -> PromptFrames:
    """Write the frames of a template; raises EncoderDamaged where one does not show the image once."""
    image_token: str = processor.image_token  # type: ignore[attr-defined]
    if not template and processor.chat_template:
        frames = PromptFrames(*_apply_chat_template(processor))
    else:
        frames = PromptFrames.of_template(template or PLAIN_TEMPLATE, image_token)
    shown = frames.image.count(image_token)
    if shown != 1:
        raise EncoderDamaged(
            f"The chat template writes {image_token} {shown} times for one image: give the prompts a template"
        )
    return frames


def _apply_chat_template(processor: "ProcessorMixin") -> tuple[str, str]:
    from transformers import ProcessorMixin

    contents: tuple[Any, ...] = (
        [{"type": "image"}, {"type": "text", "text": _INSTRUCTION}],
        [{"type": "text", "text": f"{_CONTENT}\n{_INSTRUCTION}"}],
    )
    image, text = (
        # Not the processor's own method: SmolVLM's asks its video processor how many frames to read.
        ProcessorMixin.apply_chat_template(
            processor, [{"role": "user", "content": content}], add_generation_prompt=True
        )
        for content in contents
    )
    return image, text
