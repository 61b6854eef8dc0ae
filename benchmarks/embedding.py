"""Images and texts through an encoder in batches, with progress on stderr."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.readers.base import open_photo
from encoders.base import (
    DatasetError,
    Encoder,
    FloatArray,
    ImageEmbeddings,
    MissingDependency,
    TalkingEncoder,
)
from indexer.decode import open_picture
from indexer.images import describe_error
from indexer.pixels import decode_upright

_IMAGE_BATCH = 32
_TEXT_BATCH = 128
_MATCH_BATCH = 64


def decode_pictures(paths: Iterable[Path], image_size: int) -> Iterator[Image.Image]:
    """Decode files as the index does, so that a benchmark sees what the index sees."""
    return (decode_picture(path, image_size) for path in paths)


def decode_picture(path: Path, image_size: int) -> Image.Image:
    """Decode one file, which may lie in an archive; DatasetError where it cannot be."""
    try:
        with open_photo(path) as stream, open_picture(stream) as image:
            return decode_upright(image, image_size)[0]
    except MissingDependency:
        raise
    except Exception as error:  # decoders raise anything on bad bytes
        raise DatasetError(
            f"{path} cannot be decoded ({describe_error(error)}): put a sound file in its place."
        ) from error


def embed_images(encoder: Encoder, images: Iterable[Image.Image], count: int) -> Iterator[ImageEmbeddings]:
    """Embed `count` images, a batch at a time; no more than a batch is held."""
    remaining = iter(images)
    with tqdm(total=count, unit="image", desc="images", disable=None) as progress:
        while batch := list(islice(remaining, _IMAGE_BATCH)):
            yield encoder.encode_images(batch)
            progress.update(len(batch))


def embed_image_vectors(encoder: Encoder, images: Iterable[Image.Image], count: int) -> FloatArray:
    """Embed images, keeping vectors alone: float32 (count, dim)."""
    return np.concatenate([batch.vectors for batch in embed_images(encoder, images, count)])


def embed_texts(encoder: Encoder, texts: Sequence[str]) -> FloatArray:
    """Embed texts: float32 (n, dim)."""
    # Texts of like length in a batch need little padding.
    order = np.argsort([len(text) for text in texts], kind="stable")
    vectors = np.empty((len(texts), encoder.dim), np.float32)
    with tqdm(total=len(texts), unit="text", desc="texts", disable=None) as progress:
        for start in range(0, len(texts), _TEXT_BATCH):
            rows = order[start : start + _TEXT_BATCH]
            vectors[rows] = encoder.encode_texts([texts[row] for row in rows])
            progress.update(len(rows))
    return vectors


class Sliceable(Protocol):
    """Summary tokens (n, k, width) that are had slice by slice: an array, or what makes one on demand."""

    def __getitem__(self, part: slice, /) -> FloatArray: ...


def match_texts(encoder: TalkingEncoder, summaries: Sliceable, texts: Sequence[str]) -> FloatArray:
    """Mean log-likelihood a token of texts[i] given summaries[i]: float32 (n,)."""
    scores = np.empty(len(texts), np.float32)
    with tqdm(total=len(texts), unit="caption", desc="likelihoods", disable=None) as progress:
        for start in range(0, len(texts), _MATCH_BATCH):
            rows = slice(start, start + _MATCH_BATCH)
            scores[rows] = encoder.match(summaries[rows], texts[rows])
            progress.update(len(scores[rows]))
    return scores
