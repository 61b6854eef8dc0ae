"""A stock LVLM behind the `Encoder` protocol: the training-free baseline, without summary tokens.

The prompt asks for a summary in one word, so the last hidden state before that word represents the image or
the text (E5-V, arXiv 2407.12580). A stock LLaVA-1.5 reaches R@1 of 59.6 on Flickr30k this way, according to
the Fwd2Bot paper (arXiv 2503.21757).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchEncoding

from encoders.base import EncoderMismatch, FloatArray, ImageEmbeddings, PreparedImage
from encoders.batches import to_unit_rows
from encoders.fwd2bot.folders import fetch_lvlm, hash_folders
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.preparation import ImagePreparer
from encoders.fwd2bot.pretrained import Lvlm, load_lvlm
from encoders.fwd2bot.prompts import Prompts
from encoders.fwd2bot.seeing import answer_from_pixels
from encoders.imaging import ImageEncoder
from encoders.precision import choose_dtype

ONE_WORD = Prompts(
    image="Summary above image in one word:", text="Summary above sentence in one word:", caption=""
)
_TEXTS_AT_ONCE = 32


class LvlmEncoder(ImageEncoder):
    """A stock LVLM that is prompted to summarise each image and each text in one word."""

    summary_shape = None

    def __init__(self, name: str, fingerprint: str, lvlm: Lvlm, device: torch.device) -> None:
        super().__init__(name, fingerprint, device)
        self.model: Any = lvlm.model
        self.builder = InputBuilder(lvlm.processor, ONE_WORD, summary_count=0)
        self._preparer = ImagePreparer(self.builder)

    @classmethod
    def load(cls, name: str, model_name: str, device: str) -> "LvlmEncoder":
        """Load a folder or hub name; raises what `load_lvlm` does."""
        lvlm = load_lvlm(model_name, device, choose_dtype(device))
        backend = type(lvlm.processor.image_processor).__name__
        fingerprint = hash_folders([fetch_lvlm(model_name)], f"{backend} {ONE_WORD}")
        return cls(name, fingerprint, lvlm, torch.device(device))

    @property
    def dim(self) -> int:
        """Length of an embedding: the LLM's width."""
        return int(self.model.get_decoder().config.hidden_size)

    @property
    def image_size(self) -> int:
        """Shorter side, in pixels, of the largest image that the model takes."""
        return self.builder.image_side

    def prepare_image(self, image: Image.Image) -> PreparedImage:
        """Preprocess an image if the processor handles each one independently; else return it unchanged."""
        return self._preparer.prepare(image)

    def _encode(self, prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        return ImageEmbeddings(self._read_last(self._preparer.collate(prepared, self.device)), None)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Embed texts in batches."""
        parts = [texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE)]
        rows = [self._read_last(self.builder.texts(part).to(self.device)) for part in parts]
        return np.concatenate(rows) if rows else np.empty((0, self.dim), np.float32)

    def caption_images(self, images: Sequence[Image.Image]) -> list[str]:
        """Describe each image with the stock LVLM, from all image tokens, under Fwd2Bot's caption prompt."""
        return self.answer_images(images, [Prompts().caption] * len(images))

    def answer_images(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """Answer with the stock LVLM, from all image tokens: greedy decoding, up to 48 tokens."""
        return answer_from_pixels(self.model, self.builder, images, questions)

    @torch.inference_mode()
    def _read_last(self, inputs: BatchEncoding) -> FloatArray:
        """Each prompt's last hidden state as a unit row, without lm_head; left padding aligns the ends."""
        read = {name: self._cast(value) for name, value in inputs.items()}
        try:
            hidden = self.model.model(**read, use_cache=False).last_hidden_state[:, -1]
        except ValueError as error:  # on image tokens that do not fit the model
            raise EncoderMismatch(
                f"{self.name} cannot read what its processor makes of an image "
                f"({' '.join(str(error).split())}): take both from one place"
            ) from error
        return to_unit_rows(hidden)

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self.model.dtype) if value.is_floating_point() else value
