"""What the model is told: one chat template and the three instructions of the two passes."""

from dataclasses import dataclass

IMAGE_PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Prompts:
    """Texts around the image, the query and the question; part of the encoder's fingerprint.

    template: wraps a content (the image placeholder or a text) and an instruction, as the LVLM was trained to
    read them. image: the instruction of pass 1 over an image (Fwd2Bot, section 3). text: the same over a
    text. caption: pass 2.
    """

    template: str = "USER: {content}\n{instruction} ASSISTANT:"
    image: str = "Summarize the image in a few words."
    text: str = "Summarize the text in a few words."
    caption: str = "Describe the image."

    def image_prompt(self) -> str:
        """Pass 1 over an image: [H_v ; H_p]."""
        return self._fill(IMAGE_PLACEHOLDER, self.image)

    def text_prompt(self, text: str) -> str:
        """Pass 1 over a text."""
        return self._fill(text.replace(IMAGE_PLACEHOLDER, " "), self.text)

    def question_prompt(self, question: str) -> str:
        """Pass 2: the summary tokens take the place of the image."""
        return self._fill(IMAGE_PLACEHOLDER, question.replace(IMAGE_PLACEHOLDER, " "))

    def _fill(self, content: str, instruction: str) -> str:
        return self.template.replace("{instruction}", instruction).replace("{content}", content)
