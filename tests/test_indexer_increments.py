"""What is known by its digest is copied: files that move, return, are duplicates, or only look new."""

import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
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
from indexer.contents import KnownContents
from indexer.file_list import FoundImages
from indexer.folder import FolderSource
from indexer.images import ImageFile
from indexer.manifest import Manifest, PartRecord, read_manifest
from indexer.recorder import BatchRecorder
from indexer.table import read_newest_rows
from tests.conftest import FakeEncoder, Witness, build, open_table, paint


def test_a_renamed_folder_is_copied_to_the_bit(gallery: Path, encoder: FakeEncoder) -> None:
    build(gallery, encoder)
    before = open_table(gallery).to_arrow()
    (gallery / "below").rename(gallery / "renamed")
    encoder.embedded = 0
    assert build(gallery, encoder) == BuildReport(indexed=0, copied=4, reused=4, removed=4, skipped=0)
    assert encoder.embedded == 0
    after = open_table(gallery).to_arrow()
    rows = {Path(row["path"]).name: row for row in after.to_pylist()}
    for old in before.to_pylist():
        new = rows[Path(old["path"]).name]
        assert {**new, "id": 0, "path": ""} == {**old, "id": 0, "path": ""}
    assert sum(path.startswith("renamed/") for path in after["path"].to_pylist()) == 4


def test_a_file_whose_time_alone_changed_is_not_embedded(gallery: Path, encoder: FakeEncoder) -> None:
    build(gallery, encoder)
    os.utime(gallery / "red.png", ns=(5, 5))
    assert build(gallery, encoder) == BuildReport(0, 1, 7, 0, 0)
    assert build(gallery, encoder) == BuildReport(0, 0, 8, 0, 0)
    rows = open_table(gallery).to_arrow(["path", "mtime_ns"]).to_pylist()
    assert {"path": "red.png", "mtime_ns": 5} in rows


def test_a_file_that_changed_within_its_size_and_time_stays_known_by_them(
    gallery: Path, encoder: FakeEncoder
) -> None:
    build(gallery, encoder)
    status = (gallery / "red.png").stat()
    content = bytearray((gallery / "red.png").read_bytes())
    content[-1] ^= 1
    (gallery / "red.png").write_bytes(content)
    os.utime(gallery / "red.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert build(gallery, encoder).reused == 8


def test_duplicates_are_embedded_once(gallery: Path, encoder: FakeEncoder) -> None:
    for number in range(20):
        shutil.copy(gallery / "red.png", gallery / f"a{number}.png")
        shutil.copy(gallery / "red.png", gallery / f"z{number}.png")
    witness = Witness()
    settings = BuildSettings(batch_size=3, workers=8)
    report = build_index(gallery, gallery / ".fwd2bot", encoder, settings, witness)
    assert report == BuildReport(8, 40, 0, 0, 0) and encoder.embedded == 8
    assert witness.total == witness.done == 48
    table = open_table(gallery)
    reds = [place for place, path in enumerate(table.paths) if path[0] in "az" or path == "red.png"]
    assert len(reds) == 41 and (table.vectors[reds] == table.vectors[reds[0]]).all()
    tokens = table.read_summaries(table.ids[reds].tolist())
    assert (tokens == tokens[0]).all()


def test_duplicates_of_a_bad_file_are_each_skipped(gallery: Path, encoder: FakeEncoder) -> None:
    for number in range(10):
        (gallery / f"bad{number}.png").write_bytes(b"no image")
    witness = Witness()
    settings = BuildSettings(batch_size=3, workers=4)
    report = build_index(gallery, gallery / ".fwd2bot", encoder, settings, witness)
    assert report == BuildReport(8, 0, 0, 0, 10)
    assert len(witness.skipped) == 10 and witness.total == witness.done == 18
    assert build(gallery, encoder) == BuildReport(0, 0, 8, 0, 10)


def test_a_duplicate_of_what_has_failed_is_not_kept_waiting(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "z.png"):  # the one is done with long before the other is read
        (gallery / name).write_bytes(b"no image")
    waited, take = list[str](), BatchRecorder.take_unsettled

    def note(recorder: BatchRecorder) -> list[ImageFile]:
        files = take(recorder)
        waited.extend(file.path for file in files)
        return files

    monkeypatch.setattr(BatchRecorder, "take_unsettled", note)
    settings = BuildSettings(batch_size=1, workers=1)
    assert build_index(gallery, gallery / ".fwd2bot", encoder, settings).skipped == 2
    assert waited == []


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


def test_a_restored_file_is_copied_until_a_compaction_has_dropped_its_row(
    gallery: Path, encoder: FakeEncoder
) -> None:
    build(gallery, encoder)
    for compacted, expected in ((False, BuildReport(0, 1, 7, 0, 0)), (True, BuildReport(1, 0, 7, 0, 0))):
        (gallery / "red.png").rename(gallery / "red.hidden")
        assert build(gallery, encoder).removed == 1
        if compacted:
            compact_index(gallery / ".fwd2bot")
        (gallery / "red.hidden").rename(gallery / "red.png")
        assert build(gallery, encoder) == expected


def test_a_copy_may_come_from_rows_that_are_not_yet_committed(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(gallery / "below", gallery / "zz")
    for rows in (1, 3, 1024):
        monkeypatch.setattr(writer, "ROWS_PER_COMMIT", rows)
        assert build(gallery, encoder, rebuild=True) == BuildReport(8, 4, 0, 0, 0)
        table = open_table(gallery)
        by_name: dict[str, set[bytes]] = {}
        for path, vector in zip(table.paths, table.vectors, strict=True):
            by_name.setdefault(Path(path).name, set()).add(vector.tobytes())
        assert all(len(vectors) == 1 for vectors in by_name.values())


def test_metadata_becomes_columns_and_is_copied_with_the_rest(tmp_path: Path, encoder: FakeEncoder) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Acme", "One", 6
    exif.get_ifd(0x8769)[0x9003] = "2020:02:03 04:05:06"
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.jpg", exif=exif)
    build(tmp_path, encoder)
    (tmp_path / "a.jpg").rename(tmp_path / "b.jpg")
    assert build(tmp_path, encoder) == BuildReport(0, 1, 0, 1, 0)
    (row,) = open_table(tmp_path).to_arrow().to_pylist()
    assert str(row["taken_at"]) == "2020-02-03 04:05:06" and row["camera"] == "Acme One"
    assert (row["width"], row["height"], row["orientation"], row["latitude"]) == (30, 40, 6, None)


class Impatient(Witness):
    """Breaks a run off at its first batch."""

    def advance(self, count: int) -> None:
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


def test_known_contents_are_those_of_a_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "RECENT_LIMIT", 7)
    chance = np.random.default_rng(0)
    digests = [chance.bytes(16).hex() for _ in range(300)]
    digests += [digest[:16] + other[16:] for digest, other in pairwise(digests)]
    known = KnownContents(np.zeros((0, 2), np.uint64), np.zeros(0, np.int64))
    naive: dict[str, int] = {}
    for row_id in range(2000):
        digest = digests[chance.integers(len(digests))]
        assert known.find(digest) == naive.get(digest)
        if row_id % 3:
            known.add({digest: row_id})
            naive[digest] = row_id
    assert all(known.find(digest) == naive.get(digest) for digest in digests)


def test_the_first_to_ask_for_new_bytes_reads_them() -> None:
    known = KnownContents(np.zeros((0, 2), np.uint64), np.zeros(0, np.int64))
    digest = "0123456789abcdef" * 2
    assert digest not in known and digest in known and known.find(digest) is None
    known.add({digest: 7})
    assert digest in known and known.find(digest) == 7


def test_nobody_waits_for_bytes_that_cannot_be_embedded() -> None:
    known = KnownContents(np.zeros((0, 2), np.uint64), np.zeros(0, np.int64))
    digest = "0123456789abcdef" * 2
    assert digest not in known
    known.give_up([digest])
    assert digest not in known and digest not in known


def test_the_newest_row_of_a_path_wins(gallery: Path, encoder: FakeEncoder) -> None:
    build(gallery, encoder)
    for number in range(5):
        paint(gallery / "red.png", "blue", size=(20, 20 + number))
        build(gallery, encoder)
    index = gallery / ".fwd2bot"
    rows = read_newest_rows(index, read_manifest(index), ["id", "height"]).to_pylist()
    assert len(rows) == 8
    assert [row["height"] for row in rows if row["path"] == "red.png"] == [24]
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)


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
