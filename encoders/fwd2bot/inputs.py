"""Turns images, texts and questions into the padded tensors that the two passes read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase, ProcessorMixin

from encoders.fwd2bot.families import find_family_of_processor
from encoders.fwd2bot.model import IGNORED
from encoders.fwd2bot.prompts import PromptFrames, Prompts, frame_prompts
from encoders.fwd2bot.writer import LONGEST_ANSWER, LONGEST_TEXT, PromptWriter, match_special


@dataclass(frozen=True)
class InputBuilder:
    """Writes prompts with the LVLM's own processor; pads on the left, because summary tokens come last.

    summary_count: k, the number of placeholders in a pass-2 prompt. longest_text, longest_answer: maximum
    tokens of a text and of an answer. A truncated answer has no end token to learn.
    """

    processor: ProcessorMixin
    prompts: Prompts
    summary_count: int
    longest_text: int = LONGEST_TEXT
    longest_answer: int = LONGEST_ANSWER

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The LVLM's tokenizer."""
        tokenizer: PreTrainedTokenizerBase = self.processor.tokenizer
        return tokenizer

    @property
    def image_side(self) -> int:
        """Shorter side, in pixels, of the largest image that the LVLM takes."""
        return find_family_of_processor(self.processor).image_side(self.processor)

    @cached_property
    def frames(self) -> PromptFrames:
        """The prompt frames around images, texts and questions."""
        return frame_prompts(self.prompts.template, self.processor)

    @cached_property
    def writer(self) -> PromptWriter:
        """The writer of texts, questions and answers as token ids of the LVLM's tokenizer."""
        tokenizer, image_token = self.tokenizer, str(self.processor.image_token)  # type: ignore[attr-defined]
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        family = find_family_of_processor(self.processor)
        return PromptWriter(
            frames=self.frames,
            prompts=self.prompts,
            tokenize=self._tokenize,
            join=self._join,
            special=match_special({*special, image_token}),
            image_token=image_token,
            summary=family.before + image_token * self.summary_count + family.after,
            first=tokenizer.bos_token,
            end=tokenizer.eos_token_id,
            longest_text=self.longest_text,
            longest_answer=self.longest_answer,
        )

    def _tokenize(self, text: str, special_tokens: bool) -> list[int]:
        # Without truncation: the tokenizer would keep that setting, and write it out when saved.
        ids: list[int] = self.tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"]
        return ids

    def _join(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids))

    def images(self, images: Sequence[Image.Image]) -> BatchEncoding:
        """Pass 1 over images: input_ids, attention_mask (batch, length) and the vision tower's inputs."""
        return self._show(images, [self.prompts.image] * len(images))

    def image_questions(self, images: Sequence[Image.Image], questions: Sequence[str]) -> BatchEncoding:
        """Questions about the images themselves, without summary tokens, up to where the answers begin."""
        return self._show(images, [self.writer.clean_question(question) for question in questions])

    def _show(self, images: Sequence[Image.Image], instructions: Sequence[str]) -> BatchEncoding:
        prompts = [self.frames.fill_image(instruction) for instruction in instructions]
        inputs: BatchEncoding = self.processor(
            # One list per image: SmolVLM would take a flat list for the images of a single prompt.
            images=[[image] for image in images],
            text=prompts,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=self.writer.wants_special_tokens(self.frames.image),
        )
        return inputs

    def pixels(self, pixel_values: Tensor) -> BatchEncoding:
        """Pass 1 over images that are already normalised pixels (batch, 3, height, width) of one size."""
        # A blank image of the same size tells the processor how many image tokens to write.
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
        return self._pad([self.writer.text(text) for text in texts])

    def questions(self, questions: Sequence[str]) -> BatchEncoding:
        """Pass 2 up to where the answer begins."""
        return self._pad([self.writer.question(question) for question in questions])

    def answers(self, questions: Sequence[str], answers: Sequence[str]) -> tuple[BatchEncoding, Tensor]:
        """Pass 2 with its answers, and labels (batch, length): IGNORED except on the answer and its end."""
        prompts = [self.writer.question(question) for question in questions]
        endings = [self.writer.answer(answer) for answer in answers]
        inputs = self._pad([prompt + ending for prompt, ending in zip(prompts, endings, strict=True)])
        length = inputs["input_ids"].shape[1]
        answered = torch.tensor([[length - len(ending)] for ending in endings])
        labels = inputs["input_ids"].masked_fill(torch.arange(length) < answered, IGNORED)
        return inputs, labels

    def _pad(self, rows: list[list[int]]) -> BatchEncoding:
        return self.tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="left")
