"""The encoder protocols, what they return, and every error the project raises on purpose.

Fwd2BotError
├── MissingDependency      an optional package, or a GPU, is missing; the message says what to do
├── EncoderError
│   ├── EncoderNotFound    no usable encoder for this name, device or setting
│   ├── EncoderDamaged     a checkpoint that cannot be read
│   ├── EncoderMismatch    model, processor and index do not belong together
│   └── CannotAnswer       summary tokens are needed, but the model or the index keeps none
├── IndexFailure
│   ├── IndexNotFound      no index at this path, or in this folder and its parents
│   ├── IndexDamaged       a manifest, part or FAISS file that cannot be trusted
│   ├── IndexLocked        another process is writing to the index
│   └── NothingToIndex     a folder that does not exist, cannot be listed or holds no image
├── QueryError             a query that cannot be searched, or an image that is not in the index
├── DatasetError           an annotation file, split or setting that cannot be used
└── TrainingDiverged       a loss or a gradient that is no longer finite
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, TypeGuard, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FloatArray = NDArray[np.float32]
# Normalised float32 pixels, uint8 pixels not yet normalised, or an image that is prepared with its batch.
PreparedImage = FloatArray | NDArray[np.uint8] | Image.Image

DEFAULT_ENCODER = "tiny"  # the model that comes with the package
LVLM_PREFIX, SENTENCE_PREFIX = "lvlm:", "st:"  # followed by a folder or a hub name


class Fwd2BotError(Exception):
    """Base of all errors that the command line prints as a one-line message."""


def first_line(error: Exception) -> str:
    """The first line of a third-party error's message; its class name if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class MissingDependency(Fwd2BotError):
    """An optional package is not installed, or a GPU is needed and there is none."""


class EncoderError(Fwd2BotError):
    """Base of the errors about a model."""


class EncoderNotFound(EncoderError):
    """No usable encoder for this name, device or setting."""


class EncoderDamaged(EncoderError):
    """A checkpoint that cannot be read."""


class EncoderMismatch(EncoderError):
    """Model, processor and index do not belong together."""


class CannotAnswer(EncoderError):
    """Summary tokens are needed, but the model or the index keeps none."""


class IndexFailure(Fwd2BotError):
    """Base of the errors about an index on disk."""


class IndexNotFound(IndexFailure):
    """No index at this path, or in this folder and its parents."""


class IndexDamaged(IndexFailure):
    """A manifest, part or FAISS file that cannot be trusted."""


class ManifestDamaged(IndexDamaged):
    """A manifest that cannot be trusted, though the parts may well be sound."""


class IndexLocked(IndexFailure):
    """Another process is writing to this index."""


class NothingToIndex(IndexFailure):
    """A folder that does not exist, cannot be listed or holds no image."""


class QueryError(Fwd2BotError):
    """A query that cannot be searched, or an image that is not in the index."""


class DatasetError(Fwd2BotError):
    """An annotation file, a split or a setting that cannot be used."""


class TrainingDiverged(Fwd2BotError):
    """A loss or a gradient that is no longer finite. rows: ids of the step's training rows, where known."""

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = rows


class ImageEmbeddings(NamedTuple):
    """The embeddings and summary tokens of n images.

    vectors: float32 (n, dim), rows of unit length. summaries: float32 (n, k, width), or None if the encoder
    has no summary tokens.
    """

    vectors: FloatArray
    summaries: FloatArray | None


class TextEncoder(Protocol):
    """Embeds texts as unit vectors, in the space of images embedded under the same fingerprint."""

    @property
    def name(self) -> str:
        """The name under which `load_encoder` loads this encoder."""

    @property
    def fingerprint(self) -> str:
        """Hash of weights, prompts and preprocessing; equal ones give equal embeddings, to a rounding."""

    @property
    def dim(self) -> int:
        """Length of an embedding."""

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Embed texts: float32 (n, dim), rows of unit length."""


class Encoder(TextEncoder, Protocol):
    """Embeds images and texts as unit vectors in one space. Returns NumPy arrays; tensors stay inside."""

    @property
    def image_size(self) -> int:
        """Shorter side, in pixels, of the model's input: a decoder need not deliver much more."""

    @property
    def summary_shape(self) -> tuple[int, int] | None:
        """(k, width) of one image's summary tokens, or None."""

    @property
    def batch_size(self) -> int:
        """The best number of images per batch; never more than fit in device memory."""

    def encode_images(self, images: Sequence[Image.Image]) -> ImageEmbeddings:
        """Embed RGB images of any size."""

    def prepare_image(self, image: Image.Image) -> PreparedImage:
        """Preprocess an RGB image as far as possible without the model; may be called from any thread."""

    def encode_prepared(self, prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        """Embed outputs of `prepare_image`, with the same result as `encode_images` on the images."""

    def lanes(self) -> AbstractContextManager[Sequence["Encoder"]]:
        """One encoder (this one or a copy) per batch to run concurrently, each called from its own thread."""


class Talker(TextEncoder, Protocol):
    """Reads texts and stored summary tokens, which take the place of the image."""

    def caption(self, summaries: FloatArray) -> list[str]:
        """Describe each image from its summary tokens (n, k, width) alone."""

    def answer(self, summaries: FloatArray, question: str | Sequence[str]) -> list[str]:
        """Answer from summary tokens (n, k, width) alone. question: one for all images, or one per image."""

    def match(self, summaries: FloatArray, texts: Sequence[str]) -> FloatArray:
        """Mean log-likelihood per token (nats) of texts[i] as the caption of summaries[i]: float32 (n,)."""


@runtime_checkable
class TalkingEncoder(Encoder, Talker, Protocol):
    """An encoder whose summary tokens can later be used in place of the image."""


@runtime_checkable
class SeeingEncoder(Encoder, Protocol):
    """An encoder whose LVLM can also answer from the image itself, without summary tokens."""

    def caption_images(self, images: Sequence[Image.Image]) -> list[str]:
        """Describe each image."""

    def answer_images(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """Answer questions[i] about images[i]."""


@overload
def can_talk(encoder: Encoder) -> TypeGuard[TalkingEncoder]: ...
@overload
def can_talk(encoder: TextEncoder) -> TypeGuard[Talker]: ...
def can_talk(encoder: TextEncoder) -> bool:
    """Whether the class of an encoder has the methods of a `Talker`.

    On Python 3.11, isinstance would evaluate every property, and `batch_size` encodes hundreds of images.
    """
    return all(hasattr(type(encoder), method) for method in ("caption", "answer", "match"))
