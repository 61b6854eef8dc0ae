"""What an encoder is, what it returns, and every error the project raises on purpose.

Fwd2BotError
├── MissingDependency      an optional package is not installed; says the pip command
├── EncoderError
│   ├── EncoderNotFound    a name that leads to no encoder
│   ├── EncoderDamaged     a checkpoint that cannot be read
│   ├── EncoderMismatch    an index made by another model than the one at hand
│   └── CannotAnswer       an encoder without summary tokens was asked to talk
├── IndexFailure
│   ├── IndexNotFound      no index here or above
│   ├── IndexDamaged       a manifest, part or FAISS file that cannot be trusted
│   ├── IndexLocked        another process is writing
│   └── NothingToIndex     a folder that is not there or holds no image
├── QueryError             a query without words, an image the index does not know
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
# Pixels as the model reads them, their bytes before they are scaled, or an image still to be prepared.
PreparedImage = FloatArray | NDArray[np.uint8] | Image.Image

DEFAULT_ENCODER = "tiny"  # the model that comes with the package
LVLM_PREFIX, SENTENCE_PREFIX = "lvlm:", "st:"  # of names that go on with a folder or a hub name


class Fwd2BotError(Exception):
    """Base of all errors that the command line prints as one sentence."""


def first_line(error: Exception) -> str:
    """The first line of what a foreign error says; its kind, where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class MissingDependency(Fwd2BotError):
    """An optional package is not installed."""


class EncoderError(Fwd2BotError):
    """Something about the model."""


class EncoderNotFound(EncoderError):
    """A name that leads to no encoder."""


class EncoderDamaged(EncoderError):
    """A checkpoint that cannot be read."""


class EncoderMismatch(EncoderError):
    """An index made by another model than the one at hand."""


class CannotAnswer(EncoderError):
    """An encoder that keeps no summary tokens was asked to talk about an image."""


class IndexFailure(Fwd2BotError):
    """Something about the index on disk."""


class IndexNotFound(IndexFailure):
    """No index at this place."""


class IndexDamaged(IndexFailure):
    """A manifest, part or FAISS file that cannot be trusted."""


class IndexLocked(IndexFailure):
    """Another process is writing this index."""


class NothingToIndex(IndexFailure):
    """A folder that is not there, or one without a single image."""


class QueryError(Fwd2BotError):
    """A query that cannot be searched, or an image the index does not know."""


class DatasetError(Fwd2BotError):
    """An annotation file, a split or a setting that cannot be used."""


class TrainingDiverged(Fwd2BotError):
    """A loss or a gradient that is no longer finite. rows: the ids of those it is of, where they have any."""

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = rows


class ImageEmbeddings(NamedTuple):
    """What an encoder made of n images.

    vectors: float32 (n, dim), rows of unit length. summaries: float32 (n, k, width), or None where the
    encoder keeps none.
    """

    vectors: FloatArray
    summaries: FloatArray | None


class TextEncoder(Protocol):
    """Texts to unit vectors, among those of the images that the encoder of this fingerprint embedded."""

    @property
    def name(self) -> str:
        """The name that `load_encoder` turns into this encoder."""

    @property
    def fingerprint(self) -> str:
        """Hash of weights, prompts and preprocessing: equal fingerprints give equal embeddings."""

    @property
    def dim(self) -> int:
        """Length of an embedding."""

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Embed texts: float32 (n, dim), rows of unit length."""


class Encoder(TextEncoder, Protocol):
    """Images and texts to unit vectors in one space. Numpy crosses; tensors stay inside."""

    @property
    def image_size(self) -> int:
        """Shorter side, in pixels, of what the model reads: a decoder need not deliver much more."""

    @property
    def summary_shape(self) -> tuple[int, int] | None:
        """(k, width) of one image's summary tokens, or None."""

    @property
    def batch_size(self) -> int:
        """Images that are best encoded at once: no more than the memory of the device holds."""

    def encode_images(self, images: Sequence[Image.Image]) -> ImageEmbeddings:
        """Embed RGB images of any size."""

    def prepare_image(self, image: Image.Image) -> PreparedImage:
        """Do to an RGB image, in any thread, what can be done before the model is free."""

    def encode_prepared(self, prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        """Embed what `prepare_image` gave, just as `encode_images` embeds the images."""

    def lanes(self) -> AbstractContextManager[Sequence["Encoder"]]:
        """This encoder or its copies, one for each batch that is best in hand at a time, each in a thread."""


class Talker(TextEncoder, Protocol):
    """What reads the texts and the stored tokens of an encoder whose tokens stand in for the image."""

    def caption(self, summaries: FloatArray) -> list[str]:
        """Describe each image from its summary tokens (n, k, width) alone."""

    def answer(self, summaries: FloatArray, question: str | Sequence[str]) -> list[str]:
        """Answer from summary tokens (n, k, width) alone: one question about each image, or one for each."""

    def match(self, summaries: FloatArray, texts: Sequence[str]) -> FloatArray:
        """Mean log-likelihood a token (nats), of texts[i] as the caption of summaries[i]: float32 (n,)."""


@runtime_checkable
class TalkingEncoder(Encoder, Talker, Protocol):
    """An encoder whose summary tokens stand in for the image afterwards."""


@runtime_checkable
class SeeingEncoder(Encoder, Protocol):
    """An encoder whose LVLM can be asked about the pixels themselves, uncompressed."""

    def caption_images(self, images: Sequence[Image.Image]) -> list[str]:
        """Describe each image."""

    def answer_images(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """Answer questions[i] about images[i]."""


@overload
def can_talk(encoder: Encoder) -> TypeGuard[TalkingEncoder]: ...
@overload
def can_talk(encoder: TextEncoder) -> TypeGuard[Talker]: ...
def can_talk(encoder: TextEncoder) -> bool:
    """Whether the class of an encoder is a Talker.

    isinstance would, on Python 3.11, read every property of it: `batch_size` encodes hundreds of images.
    """
    return all(hasattr(type(encoder), method) for method in ("caption", "answer", "match"))
