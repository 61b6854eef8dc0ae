"""Any sentence-transformers model that reads images, behind the `Encoder` protocol; it cannot talk.

Among these are CLIP and SigLIP models, models such as Qwen3-VL-Embedding, and a plain LLaVA folder, for which
the library takes the mean of the last hidden states. Texts are encoded as queries and images as documents,
with the model's own prompts for these, if it has any.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from encoders.base import (
    Encoder,
    EncoderDamaged,
    EncoderMismatch,
    EncoderNotFound,
    FloatArray,
    ImageEmbeddings,
    MissingDependency,
    PreparedImage,
    first_line,
)
from encoders.batches import to_unit_rows
from encoders.fwd2bot.families import find_family_of_processor
from encoders.fwd2bot.folders import fetch_lvlm, hash_folders
from encoders.imaging import ImageEncoder
from encoders.precision import choose_dtype
from encoders.shortage import is_shortage

_TEXTS_AT_ONCE = 64
_LIBRARY = "sentence_transformers"
_QUIETLY = {"convert_to_tensor": True, "show_progress_bar": False}


class SentenceEncoder(ImageEncoder):
    """A SentenceTransformer that embeds images and texts into one space."""

    summary_shape = None

    def __init__(self, name: str, fingerprint: str, model: Any, device: str) -> None:
        super().__init__(name, fingerprint, torch.device(device))
        self.model = model.eval()

    @classmethod
    def load(cls, name: str, model_name: str, device: str) -> "SentenceEncoder":
        """Load a folder or hub name, never code or pickles.

        The fingerprint covers all files, the image processor's backend and the library's version (X.Y).
        Raises MissingDependency, EncoderNotFound, EncoderMismatch and EncoderDamaged.
        """
        try:
            import sentence_transformers
        except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision for another torch
            raise MissingDependency(
                f'{name} needs sentence-transformers, and has none ({error}): pip install "fwd2bot[st]"'
            ) from error
        logging.getLogger(_LIBRARY).setLevel(logging.ERROR)
        folder = fetch_lvlm(model_name)
        _refuse_pickles(name, folder)
        model = _load_model(name, folder, device)
        if not model.supports("image") or not model.supports("text"):
            raise EncoderNotFound(
                f"{name} reads {' and '.join(model.modalities)}: choose one for text and image"
            )
        _refuse_without_template(name, model.processor)
        version = ".".join(sentence_transformers.__version__.split(".")[:2])
        backend = type(model.processor.image_processor).__name__
        parts = [folder, *sorted(each for each in folder.iterdir() if each.is_dir())]
        return cls(name, hash_folders(parts, f"{_LIBRARY} {version} {backend}"), model, device)

    @cached_property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.encode_texts(["a"]).shape[1])

    @cached_property
    def image_size(self) -> int:
        """Shorter side, in pixels, of the largest image that the model takes."""
        processor = self.model.processor
        try:
            return find_family_of_processor(processor).image_side(processor)
        except EncoderNotFound:  # not an LVLM: two towers, with one input size
            size = processor.image_processor.size
            return int(size.get("shortest_edge") or min(size["height"], size["width"]))

    def lanes(self) -> AbstractContextManager[Sequence[Encoder]]:
        """A single lane: the tokenizer must not be used from two threads at once."""
        return nullcontext([self])

    def prepare_image(self, image: Image.Image) -> PreparedImage:
        """Return the image unchanged: the library prepares images with their batch."""
        return image

    def _encode(self, prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        # The library leaves pixels in float32, and not every vision tower casts them.
        with torch.autocast(self.device.type, self.model.dtype, enabled=self.model.dtype != torch.float32):
            rows = self.model.encode_document(list(prepared), batch_size=len(prepared), **_QUIETLY)
        return ImageEmbeddings(to_unit_rows(rows), None)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Embed texts in batches."""
        if not texts:
            return np.empty((0, self.dim), np.float32)
        return to_unit_rows(self.model.encode_query(list(texts), batch_size=_TEXTS_AT_ONCE, **_QUIETLY))


def _refuse_pickles(name: str, folder: Path) -> None:
    for weights in folder.rglob("pytorch_model*.bin"):
        if not any(weights.parent.glob("*.safetensors")):
            raise EncoderDamaged(f"{name} keeps {weights.name} as a pickle: save it anew as safetensors")


def _refuse_without_template(name: str, processor: Any) -> None:
    """Raise EncoderMismatch if the library would give an LVLM an image without text, which none can read."""
    try:
        find_family_of_processor(processor)
    except EncoderNotFound:  # not an LVLM: two towers need no prompt
        return
    if not getattr(processor, "chat_template", None):
        raise EncoderMismatch(
            f"{name} has no chat template, without which sentence-transformers cannot show it an image: "
            f"put a chat_template.jinja into its folder, or use lvlm:{name.partition(':')[2]}"
        )


def _load_model(name: str, folder: Path, device: str) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(
            str(folder),
            device=device,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "dtype": choose_dtype(device)},
        )
    except ImportError as error:  # its own message names the package
        raise MissingDependency(f"{name} cannot be loaded: {first_line(error)}") from error
    except Exception as error:  # third-party readers may raise anything; the file is at fault
        if is_shortage(error):
            raise
        raise EncoderDamaged(f"{name} cannot be read ({first_line(error)}): fetch it again") from error
