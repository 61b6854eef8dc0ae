"""Fwd2Bot behind the `Encoder` protocol: PIL and str in, numpy out."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from encoders.base import FloatArray, ImageEmbeddings, PreparedImage
from encoders.fwd2bot.adapters import find_base_model
from encoders.fwd2bot.checkpoint import Checkpoint, load_checkpoint
from encoders.fwd2bot.folders import fingerprint_checkpoint
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import IGNORED, pool
from encoders.fwd2bot.preparation import ImagePreparer
from encoders.fwd2bot.seeing import answer_from_pixels
from encoders.fwd2bot.writer import LONGEST_REPLY, REPEATED
from encoders.imaging import ImageEncoder
from encoders.precision import choose_dtype

_TEXTS_AT_ONCE = 128
_DECODING = {"max_new_tokens": LONGEST_REPLY, "do_sample": False, "no_repeat_ngram_size": REPEATED}


class Fwd2BotEncoder(ImageEncoder):
    """A loaded checkpoint: a `TalkingEncoder` and a `SeeingEncoder`."""

    def __init__(self, name: str, fingerprint: str, checkpoint: Checkpoint, device: torch.device) -> None:
        super().__init__(name, fingerprint, device)
        self.model = checkpoint.model
        self.builder = InputBuilder(checkpoint.processor, checkpoint.prompts, self.model.summary_shape[0])
        self._preparer = ImagePreparer(self.builder)

    @classmethod
    def load(cls, name: str, folder: Path, device: str) -> "Fwd2BotEncoder":
        """Load a checkpoint folder."""
        checkpoint = load_checkpoint(folder, device, choose_dtype(device))
        checkpoint.model.prepare_inference()
        backend = type(checkpoint.processor.image_processor).__name__  # they differ by up to 0.03 per pixel
        return cls(name, fingerprint_checkpoint(folder, backend), checkpoint, torch.device(device))

    @property
    def dim(self) -> int:
        """Length of an embedding: the LLM's width."""
        return self.model.summary_shape[1]

    @property
    def summary_shape(self) -> tuple[int, int]:
        """(k, width)."""
        return self.model.summary_shape

    @property
    def image_size(self) -> int:
        """Shorter side, in pixels, of the largest image that the model takes."""
        return self.builder.image_side

    def prepare_image(self, image: Image.Image) -> PreparedImage:
        """Preprocess an image if the processor handles each one independently; else return it unchanged."""
        return self._preparer.prepare(image)

    @torch.inference_mode()
    def _encode(self, prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        summaries = self.model.compress(self._preparer.collate(prepared, self.device))
        return ImageEmbeddings(_to_numpy(pool(summaries)), _to_numpy(summaries))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Pass 1 over texts."""
        parts = [
            _to_numpy(pool(self.model.compress(self.builder.texts(part).to(self.model.device))))
            for part in (
                texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE)
            )
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)

    def caption(self, summaries: FloatArray) -> list[str]:
        """Pass 2 with the caption prompt."""
        return self.answer(summaries, self.builder.prompts.caption)

    @torch.inference_mode()
    def answer(self, summaries: FloatArray, question: str | Sequence[str]) -> list[str]:
        """Pass 2 with greedy decoding, up to 48 tokens; no 3-gram is repeated."""
        if not len(summaries):
            return []
        questions = [question] * len(summaries) if isinstance(question, str) else question
        inputs = self.builder.questions(questions).to(self.model.device)
        with warnings.catch_warnings():
            # Only new tokens count as repeats, as intended: the prompt is not part of the answer.
            warnings.filterwarnings("ignore", "Passing `no_repeat_ngram_size`", UserWarning)
            # The end token that answers were trained with, whatever the base's generation config lists.
            end = self.builder.writer.end
            ids = self.model.generate(self._to_tensor(summaries), inputs, eos_token_id=end, **_DECODING)
        answers: list[str] = self.builder.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    @torch.inference_mode()
    def match(self, summaries: FloatArray, texts: Sequence[str]) -> FloatArray:
        """Mean log-likelihood (nats per token, end included) of texts[i] as the caption of summaries[i]."""
        if not texts:
            return np.empty(0, np.float32)
        inputs, labels = self.builder.answers([self.builder.prompts.caption] * len(texts), texts)
        labels = labels.to(self.model.device)
        losses = self.model.token_losses(self._to_tensor(summaries), inputs.to(self.model.device), labels)
        return _to_numpy(-losses.sum(dim=1) / (labels[:, 1:] != IGNORED).sum(dim=1))

    def caption_images(self, images: Sequence[Image.Image]) -> list[str]:
        """Caption from all image tokens instead of summary tokens, with pass 2's adapter."""
        return self.answer_images(images, [self.builder.prompts.caption] * len(images))

    def answer_images(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """Answer from all image tokens, with pass 2's adapter and greedy decoding, up to 48 tokens."""
        return answer_from_pixels(find_base_model(self.model.generator), self.builder, images, questions)

    def _to_tensor(self, summaries: FloatArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(summaries)).to(self.model.device)


def _to_numpy(tensor: Tensor) -> FloatArray:
    return tensor.float().cpu().numpy()
