"""Nothing in a part is trusted: its decoded size is known before it is decoded into memory."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders.base import IndexDamaged, IndexFailure
from indexer.audit import audit_index, describe_index
from indexer.build import BuildReport
from indexer.durable import digest_file
from indexer.manifest import read_manifest, write_manifest
from indexer.merge import merge_index
from indexer.parts import LONGEST_ROW, ROWS_PER_GROUP, find_rows
from indexer.repair import repair_index
from indexer.table import EmbeddingTable, read_following
from retrieval.search import Searcher
from tests.conftest import FakeEncoder, build, open_table, paint, write_rows

WORDS = ["path", "digest", "status", "error", "camera", "lens"]


@pytest.fixture
def index(gallery: Path, encoder: FakeEncoder) -> Path:
    build(gallery, encoder)
    return gallery / ".fwd2bot"


def read_part(index: Path) -> pa.Table:
    (part,) = (index / "parts").iterdir()
    return pq.read_table(part)


def put(rows: pa.Table, name: str, values: list[Any]) -> pa.Table:
    field = rows.schema.field(name)
    return rows.set_column(rows.column_names.index(name), field, pa.array(values, field.type))


def forge_part(index: Path, rows: pa.Table, **options: Any) -> None:
    """Replace the only part with these rows, using any Parquet options, and update the manifest to match."""
    manifest = read_manifest(index)
    path = index / "parts" / manifest.parts[0].name
    pq.write_table(rows, path, compression="zstd", write_page_checksum=True, **options)
    part = replace(manifest.parts[0], size=path.stat().st_size, digest=digest_file(path), rows=len(rows))
    write_manifest(index, replace(manifest, parts=(replace(part, last_id=len(rows) - 1),), next_id=len(rows)))


@pytest.mark.parametrize("name", WORDS)
def test_rows_that_share_one_long_value_are_refused_before_it_is_written_out(index: Path, name: str) -> None:
    rows = read_part(index)
    forge_part(index, put(rows, name, ["x" * 200_000] * len(rows)))
    assert (index / "parts/part-000001.parquet").stat().st_size < 20_000
    with pytest.raises(IndexDamaged, match=r"8 rows of 1\d{6} bytes"):
        describe_index(index)
    (fault, *_) = audit_index(index)
    assert "8 rows of" in fault.sentence
    with pytest.raises(IndexDamaged, match="8 rows of"):
        find_rows(index, read_manifest(index), [3], ["id"])


def test_values_made_of_the_ones_before_them_are_refused(index: Path) -> None:
    rows = put(read_part(index), "path", ["x" * 200_000 + str(number) for number in range(8)])
    forge_part(index, rows, use_dictionary=False, column_encoding={"path": "DELTA_BYTE_ARRAY"})
    with pytest.raises(IndexDamaged, match="encoded as fwd2bot encodes none"):
        open_table(index.parent)


def test_a_group_of_more_rows_than_are_written_together_is_refused(index: Path) -> None:
    rows = pa.concat_tables([read_part(index)] * (ROWS_PER_GROUP // 8 + 1))
    ids = pa.array(range(len(rows)), pa.int64())
    forge_part(index, rows.set_column(0, rows.schema.field("id"), ids))
    with pytest.raises(IndexDamaged, match="136 rows in a group"):
        open_table(index.parent)


@pytest.mark.parametrize("length", [10, 4_000, 30_000])
def test_long_names_are_read_to_the_letter(index: Path, length: int) -> None:
    rows = read_part(index)
    rows = put(rows, "path", ["x" * (length - len(path)) + path for path in rows["path"].to_pylist()])
    write_rows(index, rows)
    assert EmbeddingTable.open(index).to_arrow().equals(rows)
    assert list(audit_index(index)) == []


def test_a_part_that_says_its_ids_lie_elsewhere_is_refused(index: Path) -> None:
    manifest = read_manifest(index)
    moved = replace(manifest.parts[0], first_id=1, last_id=8)
    write_manifest(index, replace(manifest, parts=(moved,), next_id=9))
    with pytest.raises(IndexDamaged, match="ids do not lie where"):
        find_rows(index, read_manifest(index), [3], ["path"])


NAN = float("nan")
FORGERIES = [
    ("path", "", "path that is empty"),
    ("path", "../a.png", "leads out of the folder"),
    ("status", "fine", "unknown status"),
    ("width", -5, "width or height below zero"),
    ("height", -1, "width or height below zero"),
    ("digest", "zz", "digest that is none"),
    ("digest", " " * 32, "digest that is none"),
    ("error", "x" * 40_000, "longer names and words"),
    ("embedding", None, "embeddings are not those"),
    ("embedding", [NAN] * 8, "embedding that is not a number"),
    ("embedding", [1.0, None] * 4, "embedding that is not a number"),
    ("summary", None, "without summary tokens"),
    ("summary_scale", None, "without summary tokens"),
    ("summary_scale", [1.0, 1.0, 1.0, NAN], "tokens that are not numbers"),
    ("summary_scale", [1.0, 1.0, 1.0, None], "tokens that are not numbers"),
    ("summary_scale", [3e38] * 4, "tokens that are not numbers"),
]


def forge_value(index: Path, name: str, value: object) -> None:
    """Give the image with id 3 another value."""
    rows = read_part(index)
    write_rows(index, put(rows, name, [*rows[name].to_pylist()[:3], value, *rows[name].to_pylist()[4:]]))


@pytest.mark.parametrize(("name", "value", "reason"), FORGERIES)
def test_what_readers_rely_on_is_verified_and_what_is_not_so_repaired(
    index: Path, encoder: FakeEncoder, name: str, value: object, reason: str
) -> None:
    forge_value(index, name, value)
    (fault, *_) = audit_index(index)
    assert reason in fault.sentence and "verify --repair" in fault.sentence
    repair_index(index)
    assert build(index.parent, encoder) == BuildReport(8, 0, 0, 0, 0)
    assert list(audit_index(index)) == []


@pytest.mark.parametrize(("name", "value", "reason"), FORGERIES[-5:])
def test_tokens_that_are_none_are_said_to_be_damage(
    index: Path,
    encoder: FakeEncoder,
    installed_encoder: Callable[[FakeEncoder], None],
    name: str,
    value: object,
    reason: str,
) -> None:
    installed_encoder(encoder)
    forge_value(index, name, value)
    with pytest.raises(IndexDamaged, match=f"{reason}.*verify --repair"):
        open_table(index.parent).read_summaries([3])
    with pytest.raises(IndexDamaged, match=f"{reason}.*verify --repair"):
        Searcher.open(index).search("red", 8, rerank=8)


@pytest.fixture
def above(index: Path, encoder: FakeEncoder) -> Path:
    """An index of the parent folder, with one image of its own."""
    folder = paint(index.parent.parent / "one.png", "red").parent
    build(folder, encoder, exclude=(index.parent.name,))
    return folder / ".fwd2bot"


@pytest.mark.parametrize(("name", "value", "reason"), FORGERIES)
def test_a_merge_takes_nothing_of_an_index_that_verify_calls_damaged(
    index: Path, above: Path, name: str, value: object, reason: str
) -> None:
    forge_value(index, name, value)
    before = read_manifest(above)
    with pytest.raises(IndexDamaged, match=f"{index}.*{reason}.*verify --repair"):
        merge_index(above, index)
    assert read_manifest(above) == before and list(audit_index(above)) == []


def test_a_merge_takes_no_row_that_a_longer_path_makes_too_long(index: Path, above: Path) -> None:
    row = {name: read_part(index)[name][3].as_py() for name in WORDS}
    forge_value(index, "error", "x" * (LONGEST_ROW - len("".join(row.values()))))
    assert list(audit_index(index)) == []
    with pytest.raises(IndexDamaged, match="longer names and words"):
        merge_index(above, index)
    assert len(EmbeddingTable.open(above)) == 1


def test_a_merge_takes_no_index_of_a_url_that_climbs_out_of_the_other(index: Path, above: Path) -> None:
    for place, root in ((above, "memory://photos"), (index, "memory://photos/../else")):
        write_manifest(place, replace(read_manifest(place), root=root))
    with pytest.raises(IndexFailure, match="does not lie in"):
        merge_index(above, index)


@pytest.mark.parametrize("reader", ["indexer.parts.pq.ParquetFile", "indexer.audit.digest_file"])
@pytest.mark.parametrize(
    "error",
    [
        *(OSError(n, os.strerror(n)) for n in (errno.EACCES, errno.EIO, errno.ESTALE)),
        pa.ArrowMemoryError(),
        pa.ArrowException(f"Unknown error: Failed to launch worker thread: {os.strerror(errno.EAGAIN)}"),
    ],
)
def test_a_part_that_cannot_be_read_just_now_is_no_damage_and_nothing_drops_it(
    index: Path, monkeypatch: pytest.MonkeyPatch, reader: str, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    before = read_manifest(index)
    acts = [repair_index, lambda index: list(audit_index(index))]
    with monkeypatch.context() as patch:
        patch.setattr(reader, refuse)
        for act in acts if "audit" in reader else [*acts, EmbeddingTable.open]:
            with pytest.raises(
                IndexFailure, match=r"parquet cannot be read \(.*\): (make room|fix that|raise the limits)"
            ) as caught:
                act(index)
            assert not isinstance(caught.value, IndexDamaged)
    assert read_manifest(index) == before and list(audit_index(index)) == []


def test_whoever_reads_what_was_replaced_goes_on_whatever_the_disk_says_of_it(index: Path) -> None:
    newest = read_manifest(index)

    def read(manifest: object) -> str:
        if manifest != newest:
            raise IndexFailure("part-000001.parquet cannot be read (Stale file handle)")
        return "read"

    assert read_following(index, replace(newest, parts=()), read) == (newest, "read")


def test_a_folder_of_parts_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    index: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    paint(index.parent / "new.png", "red", size=(9, 9))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output error"):
        patch.setattr(Path, "iterdir", refuse)
        build(index.parent, encoder)
    assert list(audit_index(index)) == []
    assert build(index.parent, encoder) == BuildReport(1, 0, 8, 0, 0)


@pytest.mark.parametrize("ids", [[*range(0, 256, 2), *range(254, 510, 2)], [0, 4, 2, *range(6, 512, 2)]])
def test_ids_that_do_not_grow_from_row_to_row_and_group_to_group_are_damage(
    index: Path, ids: list[int]
) -> None:
    assert len(ids) == 2 * ROWS_PER_GROUP
    write_manifest(index, replace(read_manifest(index), next_id=512))
    rows = pa.concat_tables([read_part(index)] * (len(ids) // 8)).combine_chunks()
    write_rows(index, put(rows, "id", ids))
    assert "its ids do not grow" in next(audit_index(index)).sentence
    write_rows(index, put(rows, "id", [*range(0, 512, 2)]))
    assert "FAISS" in next(audit_index(index)).sentence  # and no fault of the part


def test_a_part_of_absurd_size_is_refused(index: Path) -> None:
    rows = read_part(index)
    write_rows(index, put(rows, "error", ["x" * 1_000_000] * len(rows)))
    with pytest.raises(IndexDamaged, match=r"8 rows of .* bytes"):
        EmbeddingTable.open(index)


def test_a_part_that_is_no_ordinary_file_is_refused(index: Path) -> None:
    manifest = read_manifest(index)
    path = index / "parts" / manifest.parts[0].name
    path.unlink()
    os.mkfifo(path)
    write_manifest(index, replace(manifest, parts=(replace(manifest.parts[0], size=0),)))
    with pytest.raises(IndexDamaged, match="not a regular file"):
        EmbeddingTable.open(index)
