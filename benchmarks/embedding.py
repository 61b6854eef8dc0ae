"""Run images and texts through an encoder in batches, with progress on stderr."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.datasets import CaptionedImage
from benchmarks.readers.base import open_photo
from encoders.base import (
    DatasetError,
    Encoder,
    FloatArray,
    ImageEmbeddings,
    MissingDependency,
    TalkingEncoder,
)
from indexer.decode import open_picture, refuse_shape
from indexer.images import describe_error
from indexer.pixels import decode_upright

_IMAGE_BATCH = 32
_TEXT_BATCH = 128
_MATCH_BATCH = 64


def describe_arithmetic(encoder: Encoder) -> dict[str, str | None]:
    """The device and dtype that an encoder computes with; None if it has no device.

    Encoders with equal fingerprints give equal embeddings, apart from the effect of these two.
    """
    device = getattr(encoder, "device", None)
    if device is None:
        return {"device": None, "dtype": None}
    from encoders.precision import choose_dtype

    return {"device": str(device), "dtype": str(choose_dtype(device.type)).removeprefix("torch.")}


def decode_pictures(paths: Iterable[Path], image_size: int) -> Iterator[Image.Image]:
    """Decode files as the index does, so that benchmarks measure what the index stores."""
    return (decode_picture(path, image_size) for path in paths)


def decode_picture(path: Path, image_size: int) -> Image.Image:
    """Decode one file, possibly in an archive; raises DatasetError if that fails."""
    try:
        with open_photo(path) as stream:
            return decode_stream(stream, image_size)
    except MissingDependency:
        raise
    except Exception as error:  # decoders raise anything on bad bytes
        raise DatasetError(
            f"{path} cannot be decoded ({describe_error(error)}): put a sound file in its place."
        ) from error


def decode_stream(stream: BinaryIO, image_size: int) -> Image.Image:
    """Decode the bytes of one file; raises ValueError for a refused shape, and whatever decoders raise."""
    with open_picture(stream) as image:
        reason = refuse_shape(*image.size, max_megapixels=math.inf)
        if reason:
            raise ValueError(reason)
        return decode_upright(image, image_size)[0]


def embed_images(encoder: Encoder, images: Iterable[Image.Image], count: int) -> Iterator[ImageEmbeddings]:
    """Embed `count` images; only one batch is held in memory at a time."""
    remaining = iter(images)
    with tqdm(total=count, unit="image", desc="images", disable=None) as progress:
        while batch := list(islice(remaining, _IMAGE_BATCH)):
            yield encoder.encode_images(batch)
            progress.update(len(batch))


def embed_image_vectors(encoder: Encoder, images: Iterable[Image.Image], count: int) -> FloatArray:
    """Embed images, keeping only the vectors: float32 (count, dim)."""
    return np.concatenate([batch.vectors for batch in embed_images(encoder, images, count)])


def embed_texts(encoder: Encoder, texts: Sequence[str]) -> FloatArray:
    """Embed texts: float32 (n, dim)."""
    # Batches of texts of similar length need little padding.
    order = np.argsort([len(text) for text in texts], kind="stable")
    vectors = np.empty((len(texts), encoder.dim), np.float32)
    with tqdm(total=len(texts), unit="text", desc="texts", disable=None) as progress:
        for start in range(0, len(texts), _TEXT_BATCH):
            rows = order[start : start + _TEXT_BATCH]
            vectors[rows] = encoder.encode_texts([texts[row] for row in rows])
            progress.update(len(rows))
    return vectors


def pool_summaries(summaries: FloatArray) -> FloatArray:
    """Recompute image embeddings from tokens (n, k, width): float32 (n, width), rows of unit length."""
    means = summaries.mean(axis=1)
    lengths = np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray(means / lengths, np.float32)


class Tokens(Protocol):
    """Summary tokens, indexed by rows (m,) to give float32 (m, k, width): an array, or stored tokens."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> FloatArray: ...


def match_texts(
    encoder: TalkingEncoder, tokens: Tokens, rows: Sequence[int], texts: Sequence[str]
) -> FloatArray:
    """Mean log-likelihood per token of texts[i] given the tokens of image rows[i]: float32 (n,).

    Tokens are gathered one batch at a time, because those of all texts would not fit in memory.
    """
    scores = np.empty(len(texts), np.float32)
    owners = np.asarray(rows, np.int64)
    with tqdm(total=len(texts), unit="caption", desc="likelihoods", disable=None) as progress:
        for start in range(0, len(texts), _MATCH_BATCH):
            part = slice(start, start + _MATCH_BATCH)
            scores[part] = encoder.match(tokens[owners[part]], texts[part])
            progress.update(len(scores[part]))
    return scores


def match_captions(encoder: TalkingEncoder, tokens: Tokens, images: Sequence[CaptionedImage]) -> float:
    """Mean over captions of the cross-entropy given the tokens of their images, in nats per token."""
    rows = [row for row, image in enumerate(images) for _ in image.captions]
    captions = [caption for image in images for caption in image.captions]
    return -float(match_texts(encoder, tokens, rows, captions).mean())
