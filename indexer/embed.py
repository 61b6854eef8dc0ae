"""The pipeline: worker threads decode ahead while the model computes on the calling thread.

The queue is bounded, so the memory in use depends on the batch size and not on the number of images.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np

from encoders.base import Encoder, EncoderError, ImageEmbeddings

from .images import ImageFile, Photo

PhotoReader = Callable[[ImageFile], Photo]


class EmbeddedBatch(NamedTuple):
    """Photos in the order of their files, pixels dropped, and the embeddings of those without an error."""

    photos: list[Photo]
    embeddings: ImageEmbeddings | None


def embed_photos(
    encoder: Encoder, files: Iterable[ImageFile], read: PhotoReader, batch_size: int, workers: int
) -> Generator[EmbeddedBatch, None, None]:
    """Decode and embed files, `batch_size` images at a time."""
    batch: list[Photo] = []
    for photo in _read_ahead(files, read, 2 * batch_size + workers, workers):
        batch.append(photo)
        if len(batch) == batch_size:
            yield _embed_batch(encoder, batch)
            batch = []
    if batch:
        yield _embed_batch(encoder, batch)


def _read_ahead(files: Iterable[ImageFile], read: PhotoReader, ahead: int, workers: int) -> Iterator[Photo]:
    """Read files in threads, at most `ahead` of them beyond the one in use, and yield them in their order."""
    remaining = iter(files)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fwd2bot-decode")
    try:
        queue: deque[Future[Photo]] = deque(pool.submit(read, file) for file in islice(remaining, ahead))
        while queue:
            photo = queue.popleft().result()
            queue.extend(pool.submit(read, file) for file in islice(remaining, 1))
            yield photo
    finally:
        pool.shutdown(cancel_futures=True)


def _embed_batch(encoder: Encoder, batch: list[Photo]) -> EmbeddedBatch:
    images = [photo.image for photo in batch if photo.image is not None]
    if not images:
        return EmbeddedBatch(batch, None)
    embeddings = encoder.encode_images(images)
    if embeddings.vectors.shape != (len(images), encoder.dim):
        raise EncoderError(
            f"{encoder.name} gave embeddings of shape {embeddings.vectors.shape} "
            f"where {(len(images), encoder.dim)} is due: report it to the model's maker"
        )
    return _drop_broken(batch, embeddings)


def _drop_broken(batch: list[Photo], embeddings: ImageEmbeddings) -> EmbeddedBatch:
    """Turn photos whose embedding is not finite into skipped ones: a NaN would poison every search."""
    finite = np.asarray(np.isfinite(embeddings.vectors).all(axis=1))
    verdicts = iter(finite.tolist())
    photos = [
        photo
        if photo.image is None  # not encoded: broken, or known already
        else photo._replace(image=None, error="" if next(verdicts) else "the model cannot embed it")
        for photo in batch
    ]
    summaries = None if embeddings.summaries is None else embeddings.summaries[finite]
    return EmbeddedBatch(photos, ImageEmbeddings(embeddings.vectors[finite], summaries))
