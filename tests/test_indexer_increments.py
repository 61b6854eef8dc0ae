"""Files with a known digest are copied: those moved, restored, duplicated, or only seemingly new."""

import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from indexer import contents, writer
from indexer.build import BuildReport, BuildSettings
from indexer.build import build as build_index
from indexer.compact import compact_index
from indexer.contents import KnownContents
from indexer.images import ImageFile
from indexer.manifest import read_manifest
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
    for name in ("a.png", "z.png"):  # a.png has failed long before z.png is read
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


def test_paths_may_take_over_two_gib_in_all(gallery: Path, encoder: FakeEncoder) -> None:
    """Arrow cannot join more of its `string`. No test has so many bytes: it looks at the type."""
    build(gallery, encoder)
    index = gallery / ".fwd2bot"
    rows = read_newest_rows(index, read_manifest(index), [])
    assert len(rows) == 8 and pa.types.is_large_string(rows["path"].type)
