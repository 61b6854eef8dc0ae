"""Images, texts and questions to the padded tensors that the two passes read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase, ProcessorMixin

from encoders.fwd2bot.model import IGNORED
from encoders.fwd2bot.prompts import IMAGE_PLACEHOLDER, Prompts


@dataclass(frozen=True)
class InputBuilder:
    """Writes prompts with the LVLM's own processor; pads on the left, because summary tokens come last.

    summary_count: k, how many placeholders a pass-2 prompt holds. longest_text: tokens kept of a text, a
    question or an answer.
    """

    processor: ProcessorMixin
    prompts: Prompts
    summary_count: int
    longest_text: int = 128

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The LVLM's tokenizer."""
        tokenizer: PreTrainedTokenizerBase = self.processor.tokenizer
        return tokenizer

    def images(self, images: Sequence[Image.Image]) -> BatchEncoding:
        """Pass 1 over images: input_ids, attention_mask (batch, length) and what the vision tower reads."""
        prompts = [self.prompts.image_prompt()] * len(images)
        inputs: BatchEncoding = self.processor(
            images=list(images), text=prompts, return_tensors="pt", padding=True, padding_side="left"
        )
        return inputs

    def pixels(self, pixel_values: Tensor) -> BatchEncoding:
        """Pass 1 over images that are already normalised pixels (batch, 3, height, width) of one size."""
        # A blank picture of the same size tells the processor how many image tokens to write.
        blank = Image.new("RGB", (pixel_values.shape[3], pixel_values.shape[2]))
        one = self.images([blank])
        batch = pixel_values.shape[0]
        return BatchEncoding(
            {
                "input_ids": one["input_ids"].expand(batch, -1),
                "attention_mask": one["attention_mask"].expand(batch, -1),
                "pixel_values": pixel_values,
            }
        )

    def texts(self, texts: Sequence[str]) -> BatchEncoding:
        """Pass 1 over texts."""
        return self._pad([self._tokenize(self.prompts.text_prompt(self._shorten(text))) for text in texts])

    def questions(self, questions: Sequence[str]) -> BatchEncoding:
        """Pass 2 up to where the answer begins."""
        return self._pad([self._question(question) for question in questions])

    def answers(self, questions: Sequence[str], answers: Sequence[str]) -> tuple[BatchEncoding, Tensor]:
        """Pass 2 with its answers, and labels (batch, length) that ignore all but the answer and its end."""
        prompts = [self._question(question) for question in questions]
        endings = [self._answer(answer) for answer in answers]
        inputs = self._pad([prompt + ending for prompt, ending in zip(prompts, endings, strict=True)])
        length = inputs["input_ids"].shape[1]
        answered = torch.tensor([[length - len(ending)] for ending in endings])
        labels = inputs["input_ids"].masked_fill(torch.arange(length) < answered, IGNORED)
        return inputs, labels

    def _question(self, question: str) -> list[int]:
        prompt = self.prompts.question_prompt(self._shorten(question))
        before, after = prompt.split(IMAGE_PLACEHOLDER)
        image_token: str = self.processor.image_token  # type: ignore[attr-defined]
        return self._tokenize(before + image_token * self.summary_count + after)

    def _answer(self, answer: str) -> list[int]:
        return [*self._cut(" " + answer.strip()), self.tokenizer.eos_token_id]

    def _shorten(self, text: str) -> str:
        ids = self._cut(text)
        return text if len(ids) < self.longest_text else str(self.tokenizer.decode(ids))

    def _cut(self, text: str) -> list[int]:
        # Asked to truncate, the tokenizer would keep that setting, and save it.
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids[: self.longest_text]

    def _tokenize(self, prompt: str) -> list[int]:
        ids: list[int] = self.tokenizer(prompt)["input_ids"]
        return ids

    def _pad(self, rows: list[list[int]]) -> BatchEncoding:
        return self.tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="left")
