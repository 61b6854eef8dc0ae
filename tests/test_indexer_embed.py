"""The pipeline from files to rows: order, bounds, deadlines, lanes, and failures in threads."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock

import numpy as np
import pytest
from PIL import Image

from encoders.base import Encoder, EncoderError, ImageEmbeddings, PreparedImage
from indexer.ahead import read_ahead
from indexer.embed import embed_photos
from indexer.images import ImageFile, Photo
from tests.conftest import PALETTE, FakeEncoder

COLOURS = list(PALETTE)
FILES = [ImageFile(f"{number:03d}.png", 1, 1) for number in range(50)]


def draw(file: ImageFile) -> Photo:
    """A photo whose number determines its colour."""
    colour = PALETTE[COLOURS[int(file.path[:3]) % len(COLOURS)]]
    return Photo(file, image=Image.new("RGB", (40, 40), colour))


def embed(
    encoder: Encoder,
    read: Callable[[ImageFile], Photo] = draw,
    batch_size: int | None = 4,
    seconds: float = 60.0,
    files: Sequence[ImageFile] = FILES,
) -> tuple[list[Photo], np.ndarray]:
    """All photos and all vectors of a run."""
    batches = list(embed_photos(encoder, files, read, batch_size, workers=3, seconds_per_file=seconds))
    photos = [photo for batch in batches for photo in batch.photos]
    vectors = [batch.embeddings.vectors for batch in batches if batch.embeddings is not None]
    return photos, np.concatenate(vectors) if vectors else np.zeros((0, len(COLOURS)))


class LanedEncoder(FakeEncoder):
    """An encoder with several copies, each of which records the sizes of its batches."""

    def __init__(self, lanes: int = 1, delay: float = 0.0) -> None:
        super().__init__()
        self.delay = delay
        self.sizes: list[int] = []
        self.copies = [self, *(LanedEncoder(delay=delay) for _ in range(lanes - 1))]

    def lanes(self) -> AbstractContextManager[Sequence[Encoder]]:
        return nullcontext(self.copies)

    def encode_prepared(self, prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        self.sizes.append(len(prepared))
        time.sleep(self.delay * (1 + len(self.sizes) % 3))
        return super().encode_prepared(prepared)


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_embeddings_come_in_the_order_of_the_files_from_any_number_of_devices(lanes: int) -> None:
    encoder = LanedEncoder(lanes, delay=0.002)
    photos, vectors = embed(encoder)
    assert [photo.file for photo in photos] == FILES
    assert vectors.argmax(axis=1).tolist() == [number % len(COLOURS) for number in range(50)]
    assert [len(copy.sizes) for copy in encoder.copies] == [
        len(range(lane, 13, lanes)) for lane in range(lanes)
    ]


def test_devices_compute_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=10)

    class Sociable(LanedEncoder):
        def encode_prepared(self, prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
            meeting.wait()  # raises unless all three wait at the same time
            return super().encode_prepared(prepared)

    encoder = Sociable()
    encoder.copies = [encoder, Sociable(), Sociable()]
    assert len(embed(encoder, files=FILES[:24])[0]) == 24


def test_the_encoder_chooses_the_batch_size_where_nobody_else_does() -> None:
    encoder = LanedEncoder()
    encoder.batch_size = 7
    embed(encoder, batch_size=None)
    assert encoder.sizes == [7] * 7 + [1]


def test_batches_are_filled_with_images_past_photos_that_have_none() -> None:
    def read(file: ImageFile) -> Photo:
        return Photo(file, known=True) if int(file.path[:3]) % 5 else draw(file)

    encoder = LanedEncoder()
    photos, vectors = embed(encoder, read)
    assert [photo.file for photo in photos] == FILES and len(vectors) == 10
    assert encoder.sizes == [4, 4, 2]
    encoder = LanedEncoder()
    batches = list(embed_photos(encoder, FILES, lambda file: Photo(file, known=True), 4, 2))
    assert [len(batch.photos) for batch in batches] == [32, 18] and encoder.sizes == []


def test_no_more_is_read_ahead_than_the_bound_allows() -> None:
    begun = list[ImageFile]()

    def read(file: ImageFile) -> Photo:
        begun.append(file)
        return draw(file)

    files = (ImageFile(f"{number % 1000:03d}.png", 1, number) for number in range(100_000))
    pipeline = embed_photos(FakeEncoder(), files, read, 4, workers=3)
    for _ in range(10):
        next(pipeline)
    time.sleep(0.2)
    in_hand, ahead = 2 * 4, 2 * 4 + 3
    assert len(begun) <= 10 * 4 + in_hand + ahead
    pipeline.close()
    done = len(begun)
    time.sleep(0.1)
    assert len(begun) == done


def test_stopping_does_not_wait_for_a_job_that_a_thread_has_just_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Contested(SimpleQueue):  # type: ignore[type-arg]
        def empty(self) -> bool:
            nothing = super().empty()
            with suppress(Empty):
                super().get_nowait()  # as a thread would, between this answer and what follows it
            return nothing

    monkeypatch.setattr("indexer.ahead.SimpleQueue", Contested)
    never = Event()

    def read(number: int) -> int:
        return number if number == 0 else int(never.wait())

    numbers = read_ahead(range(9), read, lambda number: number, ahead=9, workers=1, seconds=60)
    assert next(numbers) == 0
    stopping = threading.Thread(target=numbers.close, daemon=True)
    stopping.start()
    stopping.join(timeout=5)
    never.set()
    assert not stopping.is_alive()


def test_images_are_prepared_in_the_threads_that_decode(encoder: FakeEncoder) -> None:
    threads = set[str]()

    def prepare(image: Image.Image) -> PreparedImage:
        threads.add(threading.current_thread().name)
        return image

    encoder.prepare_image = prepare  # type: ignore[method-assign]
    embed(encoder)
    assert threads == {"fwd2bot-read"}


def test_an_image_the_processor_refuses_is_an_error_of_that_file(encoder: FakeEncoder) -> None:
    def refuse(image: Image.Image) -> PreparedImage:
        if image.getpixel((0, 0)) == PALETTE["red"]:
            raise ValueError("too thin")
        return image

    encoder.prepare_image = refuse  # type: ignore[method-assign]
    photos, vectors = embed(encoder)
    assert {photo.error for photo in photos[::8]} == {"too thin"} and len(vectors) == 43


def test_a_decoder_that_hangs_is_left_behind_and_its_thread_replaced(encoder: FakeEncoder) -> None:
    never, lock, stuck = Event(), Lock(), list[str]()

    def read(file: ImageFile) -> Photo:
        if int(file.path[:3]) % 10 == 3:  # five files, more than there are threads
            with lock:
                stuck.append(file.path)
            never.wait()
        return draw(file)

    photos, vectors = embed(encoder, read, seconds=0.2)
    never.set()
    assert [photo.file for photo in photos] == FILES
    assert {photo.file.path for photo in photos if photo.error} == set(stuck) and len(stuck) == 5
    assert all(photo.unread and photo.error == "took longer than 0.2 s" for photo in photos if photo.error)
    assert vectors.argmax(axis=1).tolist() == [number % 8 for number in range(50) if number % 10 != 3]


def test_the_deadline_counts_from_when_a_file_is_begun(encoder: FakeEncoder) -> None:
    def read(file: ImageFile) -> Photo:
        time.sleep(0.03)  # 50 of these in 3 threads take longer than the deadline of one
        return draw(file)

    photos, _ = embed(encoder, read, seconds=0.4)
    assert not any(photo.error for photo in photos)


HANGING_RUN = """
import sys, time
sys.path.insert(0, sys.argv[1])
from indexer.ahead import read_ahead
read = lambda item: time.sleep(1000) if item == 2 else item
print(list(read_ahead(range(5), read, lambda item: "late", ahead=4, workers=2, seconds=0.1)))
"""


def test_the_end_of_the_process_does_not_wait_for_a_hanging_decoder() -> None:
    here = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", HANGING_RUN, here]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[0, 1, 'late', 3, 4]\n" and done.stderr == ""


def test_what_a_reader_raises_reaches_the_caller() -> None:
    def read(item: int) -> int:
        if item == 3:
            raise TimeoutError("of the network")  # not the deadline's
        return item

    results: Iterator[int] = read_ahead(range(6), read, lambda item: -1, ahead=2, workers=2, seconds=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TimeoutError, match="of the network"):
        next(results)


def test_what_an_encoder_raises_stops_the_run(encoder: FakeEncoder) -> None:
    def fail(images: Sequence[Image.Image]) -> ImageEmbeddings:
        raise EncoderError("no memory")

    encoder.encode_images = fail  # type: ignore[method-assign]
    with pytest.raises(EncoderError, match="no memory"):
        embed(encoder)
