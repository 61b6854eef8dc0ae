"""The pipeline: threads read and prepare images ahead, other threads run the model, the caller writes.

Every queue is bounded, so memory use depends on the batch size and not on the number of images.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import NamedTuple

import numpy as np

from encoders.base import Encoder, EncoderError, FloatArray, ImageEmbeddings, PreparedImage
from encoders.memory import give_back_memory
from encoders.shortage import is_shortage

from .ahead import read_ahead
from .images import ImageFile, Photo, describe_error

SECONDS_PER_FILE = 60.0
_PHOTOS_PER_IMAGE = 8  # a batch of mostly known photos is cut at this many per image to encode

PhotoReader = Callable[[ImageFile], Photo]


class PreparedPhoto(NamedTuple):
    """A photo and its image prepared for the model, or None if there is nothing to encode."""

    photo: Photo
    prepared: PreparedImage | None


class EmbeddedBatch(NamedTuple):
    """Photos in the order of their files, without pixels, and the embeddings of those that were decoded."""

    photos: list[Photo]
    embeddings: ImageEmbeddings | None


def embed_photos(
    encoder: Encoder,
    files: Iterable[ImageFile],
    read: PhotoReader,
    batch_size: int | None,
    workers: int,
    seconds_per_file: float = SECONDS_PER_FILE,
) -> Generator[EmbeddedBatch, None, None]:
    """Decode and embed files, in order, `batch_size` images at a time (None: the encoder's own choice).

    A photo without an image (known, or with an error) passes through. A file that takes longer than
    `seconds_per_file` to decode becomes an error, and the thread that hangs on it is abandoned.
    """
    size = batch_size or encoder.batch_size
    with encoder.lanes() as lanes:
        photos = read_ahead(
            files,
            partial(_prepare_photo, read, encoder),
            partial(_give_up, seconds_per_file),
            ahead=(len(lanes) + 1) * size + workers,
            workers=workers,
            seconds=seconds_per_file,
        )
        with closing(photos):
            yield from _encode_in_lanes(lanes, _gather_batches(photos, size))


def _prepare_photo(read: PhotoReader, encoder: Encoder, file: ImageFile) -> PreparedPhoto:
    photo = read(file)
    if photo.image is None:
        return PreparedPhoto(photo, None)
    try:
        return PreparedPhoto(photo._replace(image=None), encoder.prepare_image(photo.image))
    except Exception as error:  # a processor may reject what a decoder accepted, such as a strip of one pixel
        if is_shortage(error):  # the file is not at fault
            return PreparedPhoto(photo._replace(image=None, error=describe_error(error), unread=True), None)
        return PreparedPhoto(_spoil(photo, describe_error(error)), None)


def _spoil(photo: Photo, reason: str) -> Photo:
    """Mark a decoded photo as failed. If skipped with a size, it would be tried again (see plan.py)."""
    return photo._replace(image=None, error=reason, width=0, height=0)


def _give_up(seconds: float, file: ImageFile) -> PreparedPhoto:
    # Unread, as the disk may be at fault: a row would keep the file out until it changes.
    return PreparedPhoto(Photo(file, error=f"took longer than {seconds:g} s", unread=True), None)


def _gather_batches(photos: Iterable[PreparedPhoto], size: int) -> Iterator[list[PreparedPhoto]]:
    """Batch photos, `size` images to encode in each; fewer in the last, or where most photos are known."""
    batch, images = list[PreparedPhoto](), 0
    for photo in photos:
        batch.append(photo)
        images += photo.prepared is not None
        if images == size or len(batch) == _PHOTOS_PER_IMAGE * size:
            yield batch
            batch, images = [], 0
    if batch:
        yield batch


def _encode_in_lanes(
    lanes: Sequence[Encoder], batches: Iterable[list[PreparedPhoto]]
) -> Iterator[EmbeddedBatch]:
    """Hand batches in turn to one thread per lane, with one more queued for each; yield results in order.

    The caller has the time of one batch to write a result before any lane falls idle.
    """
    threads = [ThreadPoolExecutor(1, thread_name_prefix="fwd2bot-encode") for _ in lanes]
    in_hand = deque[Future[EmbeddedBatch]]()
    try:
        for number, batch in enumerate(batches):
            lane = number % len(lanes)
            in_hand.append(threads[lane].submit(_embed_batch, lanes[lane], batch))
            while in_hand and (len(in_hand) == 2 * len(lanes) or in_hand[0].done()):
                yield in_hand.popleft().result()
        while in_hand:
            yield in_hand.popleft().result()
        for thread in threads:
            thread.submit(give_back_memory).result()
    finally:
        for thread in threads:
            thread.shutdown(cancel_futures=True)


def _embed_batch(encoder: Encoder, batch: list[PreparedPhoto]) -> EmbeddedBatch:
    prepared = [photo.prepared for photo in batch if photo.prepared is not None]
    if not prepared:
        return EmbeddedBatch([photo.photo for photo in batch], None)
    embeddings = encoder.encode_prepared(prepared)
    _require_shape(encoder, "embeddings", embeddings.vectors, (len(prepared), encoder.dim))
    if encoder.summary_shape is not None:
        _require_shape(encoder, "tokens", embeddings.summaries, (len(prepared), *encoder.summary_shape))
    return _drop_broken(batch, embeddings)


def _require_shape(encoder: Encoder, kind: str, values: FloatArray | None, expected: tuple[int, ...]) -> None:
    given = None if values is None else values.shape
    if given != expected:
        raise EncoderError(
            f"{encoder.name} gave {kind} of shape {given} where {expected} is expected: "
            "report it to the model's maker"
        )


def _drop_broken(batch: list[PreparedPhoto], embeddings: ImageEmbeddings) -> EmbeddedBatch:
    """Mark photos whose embedding or tokens are not finite as failed: a NaN would poison every search."""
    finite = np.asarray(np.isfinite(embeddings.vectors).all(axis=1))
    if embeddings.summaries is not None:
        finite &= np.isfinite(embeddings.summaries).all(axis=(1, 2))
    verdicts = iter(finite.tolist())
    photos = [
        # A photo that was not encoded (failed, or known already) has no verdict.
        photo if prepared is None or next(verdicts) else _spoil(photo, "the model cannot embed it")
        for photo, prepared in batch
    ]
    summaries = None if embeddings.summaries is None else embeddings.summaries[finite]
    return EmbeddedBatch(photos, ImageEmbeddings(embeddings.vectors[finite], summaries))
