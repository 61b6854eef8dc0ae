"""What an index writes as it grows and shrinks: commits, parts and the FAISS file."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from indexer import compact, contents, faiss_refresh, writer
from indexer.audit import audit_index
from indexer.build import BuildReport, BuildSettings
from indexer.build import build as build_index
from indexer.columns import FileRow
from indexer.compact import compact_index
from indexer.faiss_file import save_faiss
from indexer.faiss_index import build_faiss
from indexer.file_list import FoundImages
from indexer.folder import FolderSource
from indexer.manifest import Manifest, PartRecord, read_manifest, write_manifest
from indexer.merge import create_above, merge_index
from indexer.observer import SilentObserver
from indexer.repair import repair_index
from tests.conftest import FakeEncoder, Witness, build, open_table, paint


def test_the_faiss_file_takes_what_is_new_and_is_not_built_anew(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("built anew")

    build(gallery, encoder)
    monkeypatch.setattr(faiss_refresh, "build_from_parts", refuse)
    paint(gallery / "new.png", "red", size=(9, 9))
    build(gallery, encoder)
    (gallery / "red.png").unlink()
    build(gallery, encoder)
    assert list(audit_index(gallery / ".fwd2bot")) == [] and len(open_table(gallery)) == 8


def test_an_outgrown_faiss_file_is_built_anew(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(gallery, encoder)
    monkeypatch.setattr(faiss_refresh, "is_outgrown", lambda trained, count: (trained, count) == (0, 9))
    monkeypatch.setattr(faiss_refresh, "update_faiss", None)
    paint(gallery / "new.png", "red", size=(9, 9))
    build(gallery, encoder)
    assert list(audit_index(gallery / ".fwd2bot")) == [] and len(open_table(gallery)) == 9


@pytest.mark.parametrize("damage", ["flipped", "of other images"])
def test_a_faiss_file_that_cannot_be_updated_is_built_anew(
    gallery: Path, encoder: FakeEncoder, damage: str
) -> None:
    build(gallery, encoder)
    index = gallery / ".fwd2bot"
    manifest = read_manifest(index)
    assert manifest.faiss is not None
    path = index / manifest.faiss.name
    if damage == "flipped":
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    else:
        vectors = np.asarray(open_table(gallery).vectors)
        other = build_faiss(lambda: iter([(np.arange(1, 9), vectors)]), 8, encoder.dim)
        write_manifest(index, replace(manifest, faiss=save_faiss(other, path, manifest.next_id)))
    paint(gallery / "new.png", "red", size=(9, 9))
    build(gallery, encoder)
    assert list(audit_index(index)) == [] and len(open_table(gallery)) == 9


class Impatient(Witness):
    """Interrupts a run at its first batch."""

    def advance(self, count: int) -> None:
        if self.task == "reading":
            raise KeyboardInterrupt


def test_rows_wait_for_a_commit_until_five_seconds_after_the_last(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(gallery, encoder)
    index, now, committed = gallery / ".fwd2bot", [0.0], []
    monkeypatch.setattr(writer, "time", SimpleNamespace(monotonic=lambda: now[0]))
    rows = writer.IndexWriter(index, read_manifest(index))
    for now[0] in (1.0, 5.0, 6.0, 10.0):
        rows.append([FileRow(f"{now[0]}.png", 0, 0, "", 0, 0, "skipped", "broken")], None)
        committed.append(read_manifest(index).next_id - 8)
    assert committed == [0, 2, 2, 4]


def test_an_interrupted_run_commits_what_it_has(gallery: Path, encoder: FakeEncoder) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_index(gallery, gallery / ".fwd2bot", encoder, BuildSettings(batch_size=3), Impatient())
    assert len(open_table(gallery)) == 3


def test_a_rebuild_that_ends_early_has_replaced_the_index_and_goes_on_without_rebuild(
    gallery: Path, encoder: FakeEncoder
) -> None:
    build(gallery, encoder)
    settings, other = BuildSettings(batch_size=3, rebuild=True), FakeEncoder(fingerprint="fake-2")
    with pytest.raises(KeyboardInterrupt):
        build_index(gallery, gallery / ".fwd2bot", other, settings, Impatient())
    assert (open_table(gallery).encoder.fingerprint, len(open_table(gallery))) == ("fake-2", 3)
    assert build(gallery, other) == BuildReport(5, 0, 3, 0, 0)


def test_parts_that_a_compaction_left_almost_full_are_not_all_joined_for_one_image(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (writer, compact):
        monkeypatch.setattr(module, "ROWS_PER_PART", 3)
    monkeypatch.setattr(writer, "ROWS_PER_COMMIT", 3)
    build(gallery, encoder)
    for name in ("below/green.png", "blue.png"):
        (gallery / name).unlink()
    build(gallery, encoder)
    compact_index(gallery / ".fwd2bot")
    before = read_manifest(gallery / ".fwd2bot").parts
    assert [part.rows for part in before] == [2, 2, 2]
    paint(gallery / "new.png", "red", size=(9, 9))
    build(gallery, encoder)
    parts = read_manifest(gallery / ".fwd2bot").parts
    assert parts[:2] == before[:2] and [part.rows for part in parts] == [2, 2, 3]


def test_files_that_are_gone_fill_parts_and_not_one_of_any_size(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(gallery, encoder)
    for module in ("build", "writer"):
        monkeypatch.setattr(f"indexer.{module}.ROWS_PER_PART", 3)
    monkeypatch.setattr(writer, "ROWS_PER_COMMIT", 2)
    for path in gallery.rglob("*.png"):
        path.unlink()
    paint(gallery / "new.png", "red", size=(9, 9))
    assert build(gallery, encoder) == BuildReport(1, 0, 0, 8, 0)
    assert [part.rows for part in read_manifest(gallery / ".fwd2bot").parts] == [8, 3, 3, 3]


def test_a_run_without_news_asks_no_part_what_it_knows(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(gallery, encoder)
    asked, read_columns = list[PartRecord](), contents.read_columns

    def read(index: Path, manifest: Manifest, columns: Sequence[str]) -> Iterator[pa.Table]:
        asked.extend(manifest.parts)
        return read_columns(index, manifest, columns)

    monkeypatch.setattr(contents, "read_columns", read)
    assert build(gallery, encoder).reused == 8 and not asked
    os.utime(gallery / "red.png", ns=(5, 5))
    assert build(gallery, encoder).copied == 1 and asked


def test_what_another_run_found_since_the_listing_is_not_gone(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(gallery, encoder)
    find = FolderSource.find

    def find_slowly(source: FolderSource, *arguments: Any) -> FoundImages:
        found = find(source, *arguments)
        monkeypatch.undo()
        paint(gallery / "new.png", "red", size=(9, 9))
        assert build(gallery, encoder).indexed == 1
        return found

    monkeypatch.setattr(FolderSource, "find", find_slowly)
    assert build(gallery, encoder) == BuildReport(0, 0, 9, 0, 0)


class Log(SilentObserver):
    """Keeps the name and the total of each task, and how much of it was done."""

    def __init__(self) -> None:
        self.tasks: list[list[Any]] = []

    def begin(self, task: str, total: int) -> None:
        self.tasks.append([task, total, 0])

    def advance(self, count: int) -> None:
        self.tasks[-1][2] += count


def test_long_work_tells_of_every_task_to_its_end(
    gallery: Path, encoder: FakeEncoder, tmp_path: Path
) -> None:
    index, above, log = gallery / ".fwd2bot", tmp_path / "above", Log()
    build_index(gallery, index, encoder, BuildSettings(batch_size=3), log)
    assert log.tasks == [["listing", 0, 8], ["reading", 8, 8], ["FAISS", 8, 8]]
    (gallery / "red.png").unlink()
    build(gallery, encoder)
    create_above(above, index, index)
    for act, tasks in (
        (lambda log: list(audit_index(index, log)), [["verifying", 9, 9]]),
        (lambda log: compact_index(index, log), [["compacting", 9, 9]]),
        (
            lambda log: merge_index(above, index, log),
            [["verifying", 7, 7], ["merging", 7, 7], ["FAISS", 7, 7]],
        ),
    ):
        log = Log()
        act(log)
        assert log.tasks == tasks
    next(index.glob("*.faiss")).unlink()
    log = Log()
    repair_index(index, log)
    assert log.tasks == [["verifying", 7, 7], ["FAISS", 7, 7]]
