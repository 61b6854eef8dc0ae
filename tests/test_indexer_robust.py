"""What a run survives: other writers, kills, unreadable folders; and what others can read meanwhile."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import faiss
import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from encoders.base import ImageEmbeddings, IndexLocked, MissingDependency, PreparedImage
from indexer import faiss_library, writer
from indexer.build import BuildReport, plan_build
from indexer.build import build as build_index
from indexer.images import ImageFile, Photo
from indexer.lock import lock_index
from indexer.manifest import read_manifest
from indexer.sources import Source
from indexer.table import read_newest_rows
from tests.conftest import NO_MEMORY, PALETTE, FakeEncoder, Witness, build, open_table, paint


def test_two_writers_cannot_work_at_once(gallery: Path, encoder: FakeEncoder) -> None:
    with (
        lock_index(gallery / ".fwd2bot"),
        pytest.raises(IndexLocked, match=f"process {os.getpid()} on .* since"),
    ):
        build(gallery, encoder)
    assert build(gallery, encoder).indexed == 8


def test_a_missing_faiss_is_said_before_anything_is_embedded(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_library, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r'pip install "fwd2bot\[cpu\]"'):
        build(gallery, encoder)
    assert encoder.embedded == 0


def test_many_small_runs_leave_few_parts(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ROWS_PER_COMMIT", 2)
    build(gallery, encoder)
    for number in range(20):
        paint(gallery / f"new{number}.png", "red", size=(30, 30 + number))
        build(gallery, encoder)
        assert len(read_manifest(gallery / ".fwd2bot").parts) < writer.MOST_SMALL_PARTS
    table = open_table(gallery)
    assert len(table) == 28
    assert (
        table.read_summaries(table.ids.tolist()).mean(axis=1).argmax(axis=1) == table.vectors.argmax(axis=1)
    ).all()


def test_plain_libraries_open_the_files(gallery: Path, encoder: FakeEncoder) -> None:
    build(gallery, encoder)
    import pyarrow.parquet as pq

    (part,) = (gallery / ".fwd2bot/parts").iterdir()
    rows = pq.read_table(part).to_pylist()
    assert len(rows) == 8 and rows[0]["status"] == "ok" and len(rows[0]["embedding"]) == 8
    metadata = pq.read_schema(part).metadata
    assert metadata[b"fingerprint"] == b"fake-1" and metadata[b"k"] == b"4"
    (file,) = (gallery / ".fwd2bot").glob("*.faiss")
    index = faiss.read_index(str(file))
    found = index.search(encoder.encode_texts(["red"]), 1)[1]
    assert rows[int(found[0, 0])]["path"] == "red.png"


def test_an_unlisted_folder_is_reported_and_what_it_held_is_kept(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(gallery, encoder)
    scandir = os.scandir

    def refuse(path: os.PathLike[str]) -> object:
        if Path(path).name == "below":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    witness = Witness()
    summary = build_index(gallery, gallery / ".fwd2bot", encoder, observer=witness)
    assert witness.skipped == {"below": "Permission denied"}
    assert summary == BuildReport(0, 0, 4, 0, skipped=1) and len(open_table(gallery)) == 8
    assert plan_build(gallery, gallery / ".fwd2bot").skipped_before == 1


class UnseenEntry:
    """A folder entry that cannot be examined."""

    def __init__(self, entry: os.DirEntry[str], reason: int) -> None:
        self.entry, self.reason = entry, reason

    def __getattr__(self, name: str) -> object:
        return getattr(self.entry, name)

    def stat(self) -> os.stat_result:
        raise OSError(self.reason, os.strerror(self.reason))


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOENT])
def test_only_a_file_that_is_gone_is_recorded_as_gone(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    build(gallery, encoder)
    below = sorted(f"below/{path.name}" for path in (gallery / "below").iterdir())
    scandir = os.scandir

    def hide_files(path: Path) -> AbstractContextManager[object]:
        with scandir(path) as entries:
            hidden = Path(path).name == "below"
            return nullcontext([UnseenEntry(entry, reason) if hidden else entry for entry in entries])

    monkeypatch.setattr(os, "scandir", hide_files)
    witness = Witness()
    removed = build_index(gallery, gallery / ".fwd2bot", encoder, observer=witness).removed
    if reason == errno.ENOENT:
        assert (removed, witness.skipped, len(open_table(gallery))) == (4, {}, 4)
    else:
        assert (removed, len(open_table(gallery))) == (0, 8)
        assert witness.skipped == dict.fromkeys(below, os.strerror(reason))


def test_no_file_stops_the_run_of_the_others(gallery: Path, encoder: FakeEncoder) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("original_orientation", "1")
    Image.new("RGB", (40, 40), "red").save(gallery / "named.png", pnginfo=texts)
    huge = TiffImagePlugin.ImageFileDirectory_v2()
    huge[256], huge[257] = 2**32 - 1, 1
    (gallery / "huge.tif").write_bytes(b"II*\0\x08\0\0\0" + huge.tobytes(8))
    assert build(gallery, encoder) == BuildReport(9, 0, 0, 0, 1)
    assert build(gallery, encoder) == BuildReport(0, 0, 9, 0, 1)


@pytest.mark.parametrize("by", ["processor", "model"])
def test_an_image_that_cannot_be_embedded_is_left_alone_until_it_changes(
    gallery: Path, encoder: FakeEncoder, by: str
) -> None:
    prepared, embed = list[Image.Image](), encoder.encode_images

    def prepare(image: Image.Image) -> PreparedImage:
        prepared.append(image)
        if by == "processor" and image.getpixel((0, 0)) == PALETTE["red"]:
            raise ValueError("too thin")
        return image

    def lose_red(images: Sequence[Image.Image]) -> ImageEmbeddings:
        vectors, summaries = embed(images)
        if by == "model":
            vectors[[image.getpixel((0, 0)) == PALETTE["red"] for image in images]] = np.nan
        return ImageEmbeddings(vectors, summaries)

    encoder.prepare_image, encoder.encode_images = prepare, lose_red  # type: ignore[method-assign]
    assert build(gallery, encoder) == BuildReport(7, 0, 0, 0, 1)
    prepared.clear()
    assert build(gallery, encoder) == BuildReport(0, 0, 7, 0, 1) and not prepared


SLOW_RUN = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.conftest import FakeEncoder
from indexer import writer
from indexer.build import BuildSettings, build as build_index
writer.ROWS_PER_COMMIT = 4

class Slow(FakeEncoder):
    def encode_images(self, images):
        time.sleep(0.3)
        return super().encode_images(images)

root = Path(sys.argv[2])
build_index(root, root / ".fwd2bot", Slow(), BuildSettings(batch_size=4, workers=1))
"""


def test_a_killed_run_loses_at_most_the_batch_in_hand(tmp_path: Path, encoder: FakeEncoder) -> None:
    root, here = tmp_path / "photos", Path(__file__).parents[1]
    for number in range(60):
        paint(root / f"{number:02d}.png", list(PALETTE)[number % 8], size=(40, 40 + number))
    run = subprocess.Popen([sys.executable, "-c", SLOW_RUN, str(here), str(root)])
    index_dir = root / ".fwd2bot"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and len(list(index_dir.glob("parts/*.parquet"))) < 3:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    committed = len(read_newest_rows(index_dir, read_manifest(index_dir), []))
    on_disk = 4 * len(list(index_dir.glob("parts/*.parquet")))
    assert 8 <= committed < 60 and on_disk - committed <= 4
    (index_dir / "parts/part-000099.parquet.tmp").write_bytes(b"half a part")
    summary = build(root, encoder)
    assert summary == BuildReport(60 - committed, 0, committed, 0, 0)
    assert encoder.embedded == 60 - committed
    table = open_table(root)
    assert table.paths == sorted(table.paths) and len(set(table.paths)) == 60
    build(root, encoder)
    names = {path.name for path in (index_dir / "parts").iterdir()}
    assert names == {part["name"] for part in json.loads((index_dir / "manifest.json").read_text())["parts"]}


def test_a_file_that_could_not_be_opened_is_tried_again_by_the_next_run(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Source, file: ImageFile, **_: float) -> Photo:
        return Photo(file, error="Permission denied", unread=True)

    build(gallery, encoder)
    paint(gallery / "secret.png", "red", size=(30, 30))
    with monkeypatch.context() as patch:
        patch.setattr("indexer.build.read_photo", refuse)
        assert build(gallery, encoder) == BuildReport(0, 0, 8, 0, 1)
    assert build(gallery, encoder) == BuildReport(1, 0, 8, 0, 0)


@pytest.mark.parametrize(
    ("place", "shortage", "reason"),
    [
        ("indexer.decode.decode_upright", MemoryError(), "no memory left (MemoryError)"),
        ("tests.conftest.FakeEncoder.prepare_image", MemoryError(), "no memory left (MemoryError)"),
        ("tests.conftest.FakeEncoder.prepare_image", RuntimeError(NO_MEMORY), NO_MEMORY),
    ],
)
def test_a_file_that_memory_was_short_for_is_tried_again_by_the_next_run(
    gallery: Path,
    encoder: FakeEncoder,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    shortage: Exception,
    reason: str,
) -> None:
    def fail(*_: object) -> None:
        raise shortage

    witness = Witness()
    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        report = build_index(gallery, gallery / ".fwd2bot", encoder, observer=witness)
    assert report == BuildReport(0, 0, 0, 0, 8) and {*witness.skipped.values()} == {reason}
    assert build(gallery, encoder) == BuildReport(8, 0, 0, 0, 0)
