"""An index survives a crash at any moment: at every write, flush, rename and removal, and by SIGKILL."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from encoders.base import IndexNotFound
from indexer import writer
from indexer.audit import audit_index
from indexer.build import BuildSettings
from indexer.build import build as build_index
from indexer.compact import compact_index
from indexer.manifest import read_manifest
from indexer.merge import merge_index
from indexer.repair import repair_index
from indexer.table import EmbeddingTable
from tests.conftest import PALETTE, FakeEncoder, paint
from tests.faults import FaultyDisk, Killed, install_disk

BATCH = 4
SETTINGS = BuildSettings(batch_size=BATCH, workers=1)


@pytest.fixture(autouse=True)
def small_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "ROWS_PER_COMMIT", BATCH)
    monkeypatch.setattr(writer, "MOST_SMALL_PARTS", 3)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # thousands of calls would take minutes


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "photos", 7)


def draw_photos(root: Path, count: int) -> Path:
    for number in range(count):
        paint(root / f"{number:02d}.png", list(PALETTE)[number % 8], size=(10, 10 + number))
    return root


def check_whole(index: Path, root: Path) -> None:
    """Check that each image is there once and that `verify` would find no fault."""
    table = EmbeddingTable.open(index)
    expected = sorted(path.name for path in root.rglob("*.png"))
    assert sorted(Path(path).name for path in table.paths) == expected
    assert list(audit_index(index)) == []
    table.to_arrow()


def check_readable(index: Path) -> int:
    """Check that what a crash left can be read as it is, each image once; return the number of images."""
    try:
        table = EmbeddingTable.open(index)
    except IndexNotFound:  # died before the first manifest: the next run takes over a whole part
        return sum(pq.read_metadata(part).num_rows for part in index.glob("parts/*.parquet"))
    assert len(set(table.paths)) == len(table.paths) == len(table.to_arrow())
    return len(table)


def die_everywhere(
    prepare: Callable[[], Path], act: Callable[[Path], object], check: Callable[[Path], None]
) -> None:
    """Repeat `act` on a fresh index, crashing one disk operation later each time; check what is left."""
    with install_disk(FaultyDisk()) as disk:
        act(prepare())
    assert disk.count >= 8  # a part and a manifest, each: write, flush, rename, flush of the folder
    for fatal in range(1, disk.count + 1):
        for mode in ("kill", "half") if fatal in disk.writes else ("kill",):
            index = prepare()
            with install_disk(FaultyDisk(fatal, mode)), pytest.raises(Killed):
                act(index)
            check(index)


def test_a_build_may_die_at_any_operation(photos: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    encoder = FakeEncoder()

    def prepare() -> Path:
        shutil.rmtree(index, ignore_errors=True)
        encoder.embedded = 0
        return index

    def check(index: Path) -> None:
        known = check_readable(index)
        lost = encoder.embedded - known
        assert 0 <= lost <= 3 * BATCH  # the batch being written, and two in the encoder's lane
        encoder.embedded = 0
        assert build_index(photos, index, encoder, SETTINGS).indexed == encoder.embedded == 7 - known
        check_whole(index, photos)

    die_everywhere(prepare, lambda index: build_index(photos, index, encoder, SETTINGS), check)


@pytest.fixture
def worn(photos: Path, tmp_path: Path) -> Path:
    """An index with dead rows in every part: of files changed, moved and deleted."""
    index = tmp_path / "worn"
    build_index(photos, index, FakeEncoder(), SETTINGS)
    paint(photos / "01.png", "red", size=(99, 9))
    (photos / "04.png").rename(photos / "moved.png")
    (photos / "06.png").unlink()
    build_index(photos, index, FakeEncoder(), SETTINGS)
    return index


def make_copies(source: Path, target: Path) -> Callable[[], Path]:
    def prepare() -> Path:
        shutil.rmtree(target, ignore_errors=True)
        return shutil.copytree(source, target)

    return prepare


def test_a_compaction_may_die_at_any_operation(photos: Path, worn: Path, tmp_path: Path) -> None:
    expected = EmbeddingTable.open(worn).to_arrow()

    def check(index: Path) -> None:
        assert EmbeddingTable.open(index).to_arrow().equals(expected)
        check_whole(index, photos)
        compact_index(index)
        assert EmbeddingTable.open(index).to_arrow().equals(expected)
        check_whole(index, photos)
        assert len(list((index / "parts").iterdir())) == len(read_manifest(index).parts)

    die_everywhere(make_copies(worn, tmp_path / "copy"), compact_index, check)


def test_a_merge_may_die_at_any_operation(photos: Path, tmp_path: Path) -> None:
    below = draw_photos(photos / "below", 3)
    main, part = tmp_path / "main", tmp_path / "part"
    build_index(photos, main, FakeEncoder(), BuildSettings(batch_size=BATCH, workers=1, exclude=("below",)))
    for number in range(3):
        (below / f"{number:02d}.png").rename(below / f"below{number}.png")
    build_index(below, part, FakeEncoder(), SETTINGS)

    def check(index: Path) -> None:
        known = check_readable(index)
        assert merge_index(index, part).added == 10 - known
        check_whole(index, photos)
        assert not list(index.rglob("*.tmp"))

    die_everywhere(make_copies(main, tmp_path / "copy"), lambda index: merge_index(index, part), check)


def test_a_repair_may_die_at_any_operation(photos: Path, worn: Path, tmp_path: Path) -> None:
    (worn / read_manifest(worn).faiss.name).unlink()  # type: ignore[union-attr]

    def check(index: Path) -> None:
        check_readable(index)
        repair_index(index)
        check_whole(index, photos)
        assert not list(index.rglob("*.tmp"))

    die_everywhere(make_copies(worn, tmp_path / "copy"), repair_index, check)


@pytest.mark.parametrize("act", ["build", "compact", "merge"])
def test_a_disk_that_fills_up_leaves_the_index_as_it_was(
    photos: Path, worn: Path, tmp_path: Path, act: str
) -> None:
    paint(photos / "new.png", "cyan", size=(77, 7))
    other = tmp_path / "other"
    build_index(photos, other, FakeEncoder(), SETTINGS)
    acts: dict[str, Callable[[Path], object]] = {
        "build": lambda index: build_index(photos, index, FakeEncoder(), SETTINGS),
        "compact": compact_index,
        "merge": lambda index: merge_index(index, other),
    }
    prepare = make_copies(worn, tmp_path / "copy")
    with install_disk(FaultyDisk()) as disk:
        acts[act](prepare())
    for fatal in range(1, disk.count + 1):
        index = prepare()
        with install_disk(FaultyDisk(fatal, "full")) as full:
            try:
                acts[act](index)
            except OSError as error:
                assert "No space left" in str(error)
            else:
                assert not full.refused
        assert 6 <= check_readable(index) <= 7
        assert not list(index.rglob("*.tmp"))
        acts[act](index)
        assert list(audit_index(index)) == []


class SlowEncoder(FakeEncoder):
    """Encodes slowly, and logs each image before it is done."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self._log = log

    def encode_images(self, images):  # type: ignore[no-untyped-def]
        time.sleep(0.015)
        with self._log.open("ab") as stream:
            stream.write(b"." * len(images))
        return super().encode_images(images)


def build_slowly(photos: Path, index: Path, log: Path) -> None:
    """What the process that is killed runs."""
    writer.ROWS_PER_COMMIT = BATCH
    os.close(sys.stderr.fileno())
    build_index(photos, index, SlowEncoder(log), SETTINGS)


@pytest.fixture(scope="module")
def warm_processes() -> Iterator[multiprocessing.context.ForkServerContext]:
    """Processes forked from one that has imported everything: each starts in a few hundredths of a second."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            patch.setenv(name, "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.test_indexer_crash", "faiss"])
        yield context


def test_fifty_kills_at_random_moments_lose_nothing_but_the_batches_in_hand(
    tmp_path: Path, warm_processes: multiprocessing.context.ForkServerContext
) -> None:
    photos = draw_photos(tmp_path / "photos", 32)
    chance = random.Random(5)
    cut_short = 0
    for number in range(50):
        index, log = tmp_path / f"index{number}", tmp_path / f"log{number}"
        log.touch()
        process = warm_processes.Process(target=build_slowly, args=(photos, index, log))
        process.start()
        while not index.exists():  # until the run has begun
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.25))
        assert process.pid is not None
        process.kill()
        process.join()
        cut_short += process.exitcode == -signal.SIGKILL
        known = check_readable(index)
        assert log.stat().st_size - known <= 3 * BATCH
        report = build_index(photos, index, FakeEncoder(), SETTINGS)
        assert (report.indexed, report.reused) == (32 - known, known)
        check_whole(index, photos)
    assert cut_short > 25
