"""Images, texts and questions to the padded tensors that the two passes read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase, ProcessorMixin

from encoders.fwd2bot.families import find_family_of_processor
from encoders.fwd2bot.model import IGNORED
from encoders.fwd2bot.prompts import (
    LONGEST_TEXT,
    PromptFrames,
    Prompts,
    clean_text,
    frame_prompts,
    match_special,
)


@dataclass(frozen=True)
class InputBuilder:
    """Writes prompts with the LVLM's own processor; pads on the left, because summary tokens come last.

    summary_count: k, how many placeholders a pass-2 prompt holds. longest_text, longest_answer: tokens kept
    of a text or a question, and of an answer. One that is cut has no end to be learned.
    """

    processor: ProcessorMixin
    prompts: Prompts
    summary_count: int
    longest_text: int = LONGEST_TEXT
    longest_answer: int = 256

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The LVLM's tokenizer."""
        tokenizer: PreTrainedTokenizerBase = self.processor.tokenizer
        return tokenizer

    @property
    def image_side(self) -> int:
        """Shorter side, in pixels, of the largest picture that the LVLM is shown."""
        return find_family_of_processor(self.processor).image_side(self.processor)

    @cached_property
    def frames(self) -> PromptFrames:
        """What stands around images, texts and questions."""
        return frame_prompts(self.prompts.template, self.processor)

    def images(self, images: Sequence[Image.Image]) -> BatchEncoding:
        """Pass 1 over images: input_ids, attention_mask (batch, length) and what the vision tower reads."""
        return self._show(images, [self.prompts.image] * len(images))

    def image_questions(self, images: Sequence[Image.Image], questions: Sequence[str]) -> BatchEncoding:
        """The LVLM's own prompts, up to where its answers about the images themselves begin."""
        return self._show(images, [self._clean(question) for question in questions])

    def _show(self, images: Sequence[Image.Image], instructions: Sequence[str]) -> BatchEncoding:
        prompts = [self.frames.fill_image(instruction) for instruction in instructions]
        inputs: BatchEncoding = self.processor(
            # One list an image: SmolVLM would take a flat one for the images of one prompt.
            images=[[image] for image in images],
            text=prompts,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=self._wants_special_tokens(self.frames.image),
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
        prompts = (self.frames.fill_text(self._clean(text), self.prompts.text) for text in texts)
        return self._pad([self._tokenize(prompt) for prompt in prompts])

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
        image_token: str = self.processor.image_token  # type: ignore[attr-defined]
        family = find_family_of_processor(self.processor)
        summary = family.before + image_token * self.summary_count + family.after
        prompt = self.frames.fill_image(self._clean(question))
        return self._tokenize(prompt.replace(image_token, summary))

    def _answer(self, answer: str) -> list[int]:
        space = "" if self.frames.image[-1:].isspace() else " "
        ids = self._tokenize_plain(space + answer.strip())
        fits = len(ids) <= self.longest_answer
        return [*ids, self.tokenizer.eos_token_id] if fits else ids[: self.longest_answer]

    def _clean(self, text: str) -> str:
        return clean_text(text, self._special_tokens, self._tokenize_plain, self._join, self.longest_text)

    def _join(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids))

    @cached_property
    def _special_tokens(self) -> re.Pattern[str]:
        special = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return match_special({*special, self.processor.image_token})  # type: ignore[attr-defined]

    def _tokenize_plain(self, text: str) -> list[int]:
        # All of it: asked to truncate, the tokenizer would keep that setting, and save it.
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _tokenize(self, prompt: str) -> list[int]:
        special = self._wants_special_tokens(prompt)
        ids: list[int] = self.tokenizer(prompt, add_special_tokens=special)["input_ids"]
        return ids

    def _wants_special_tokens(self, prompt: str) -> bool:
        """Whether the tokenizer is to add its own: not where the chat template wrote the first already."""
        first = self.tokenizer.bos_token
        return first is None or not prompt.startswith(first)

    def _pad(self, rows: list[list[int]]) -> BatchEncoding:
        return self.tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="left")
