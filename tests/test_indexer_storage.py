"""Nothing on disk is trusted: damage to any file is noticed, and the error names a remedy."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from encoders.base import IndexDamaged, IndexFailure, IndexNotFound, ManifestDamaged, QueryError
from indexer.build import build as build_index
from indexer.faiss_file import load_faiss
from indexer.manifest import read_manifest, write_manifest
from indexer.parts import read_rows
from indexer.quantize import dequantize_summaries, quantize_summaries
from indexer.table import EmbeddingTable
from tests.conftest import FakeEncoder


@pytest.fixture
def index_dir(gallery: Path, encoder: FakeEncoder) -> Path:
    build_index(gallery, gallery / ".fwd2bot", encoder)
    return gallery / ".fwd2bot"


def test_a_manifest_reads_back_as_it_was_written(index_dir: Path) -> None:
    manifest = read_manifest(index_dir)
    written = write_manifest(index_dir, replace(manifest, root="/elsewhere"))
    assert read_manifest(index_dir) == written
    assert not list(index_dir.glob("*.tmp"))


def test_a_folder_without_manifest_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(IndexNotFound, match="fwd2bot index DIR"):
        read_manifest(tmp_path / "nowhere")


PYTHON = re.compile("object|unpack|NoneType|subscript")  # meaningless to users who do not know Python
SPOILERS: dict[str, Callable[[dict], object]] = {
    "another format": lambda data: data.update(format=1),
    "a root elsewhere": lambda data: data.update(root="../../../etc"),
    "a root with a NUL": lambda data: data.update(root="/a\0b"),
    "a root with an escaped NUL": lambda data: data.update(root="s3://a\\x00b"),
    "a root that is no text": lambda data: data.update(root="/\ud800"),
    "a root like a URL": lambda data: data.update(root="../etc://a"),
    "a root by a URL elsewhere": lambda data: data.update(root="file://../etc"),
    "no encoder": lambda data: data.pop("encoder"),
    "an encoder of nothing": lambda data: data.update(encoder=None),
    "a dim that is text": lambda data: data["encoder"].update(dim="8"),
    "a dim that is true": lambda data: data["encoder"].update(dim=True),
    "a huge dim": lambda data: data["encoder"].update(dim=1 << 17),
    "a huge shape": lambda data: data["encoder"].update(summary_shape=[1 << 12, 1 << 12]),
    "a shape of three": lambda data: data["encoder"].update(summary_shape=[1, 2, 3]),
    "a shape that is a number": lambda data: data["encoder"].update(summary_shape=5),
    "a shape of nothing": lambda data: data["encoder"].update(summary_shape=None),
    "unknown tokens": lambda data: data.update(tokens="int4"),
    "a part elsewhere": lambda data: data["parts"][0].update(name="../../part-000001.parquet"),
    "a faiss file elsewhere": lambda data: data["faiss"].update(name="/etc/passwd"),
    "more rows than ids": lambda data: data["parts"][0].update(first_id=5),
    "ids that were never given": lambda data: data["parts"][0].update(last_id=8),
    "ids that go backwards": lambda data: data["parts"][0].update(first_id=7, last_id=0),
    "a part without rows": lambda data: data["parts"][0].update(rows=0),
    "a part named twice": lambda data: data["parts"].append(data["parts"][0] | {"first_id": 8}),
    "ids without end": lambda data: data.update(next_id=1 << 63),
    "no next id": lambda data: data.pop("next_id"),
    "a number of five thousand digits": lambda data: data.update(next_id=10**4000),
    "a negative size": lambda data: data["parts"][0].update(size=-1),
    "parts that are no list": lambda data: data.update(parts={"a": 1}),
    "a part that is a number": lambda data: data.update(parts=[1]),
}


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_a_malformed_manifest_is_refused_in_one_line(index_dir: Path, spoiler: str) -> None:
    path = index_dir / "manifest.json"
    data = json.loads(path.read_text())
    del data["digest"]  # older versions wrote none
    SPOILERS[spoiler](data)
    path.write_text(json.dumps(data))
    with pytest.raises(ManifestDamaged, match="verify --repair") as caught:
        read_manifest(index_dir)
    assert "\n" not in str(caught.value) and not PYTHON.search(str(caught.value))


@pytest.mark.parametrize(
    "root", ["..", "/", "/a/b\n", r"/a\x5cb\xff", "s3://b/c", "memory://", "zip://a::s3://b"]
)
def test_a_root_that_fwd2bot_writes_is_read(index_dir: Path, root: str) -> None:
    written = write_manifest(index_dir, replace(read_manifest(index_dir), root=root))
    assert read_manifest(index_dir) == written


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_no_manifest_is_refused(index_dir: Path, content: bytes) -> None:
    (index_dir / "manifest.json").write_bytes(content)
    with pytest.raises(ManifestDamaged, match="verify --repair") as caught:
        read_manifest(index_dir)
    assert not PYTHON.search(str(caught.value))


def test_a_manifest_that_the_system_cannot_read_is_no_damage(index_dir: Path) -> None:
    (index_dir / "manifest.json").unlink()
    (index_dir / "manifest.json").mkdir()
    with pytest.raises(IndexFailure, match=r"cannot be read \(Is a directory\)") as caught:
        read_manifest(index_dir)
    assert not isinstance(caught.value, IndexDamaged)


def test_an_index_of_a_newer_version_is_not_given_up(index_dir: Path) -> None:
    (index_dir / "manifest.json").write_text('{"format": 3}')
    with pytest.raises(IndexDamaged, match=r"by a newer fwd2bot \(format 3 .*upgrade") as caught:
        read_manifest(index_dir)
    assert "rebuild" not in str(caught.value) and "damaged" not in str(caught.value)


def test_a_damaged_manifest_can_be_rebuilt_over(index_dir: Path, encoder: FakeEncoder) -> None:
    from indexer.build import BuildSettings

    (index_dir / "manifest.json").write_bytes(b"{")
    with pytest.raises(IndexDamaged):
        build_index(index_dir.parent, index_dir, encoder)
    assert build_index(index_dir.parent, index_dir, encoder, BuildSettings(rebuild=True)).indexed == 8
    assert len(EmbeddingTable.open(index_dir)) == 8


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x55
    path.write_bytes(content)


def read_everything(index_dir: Path) -> tuple[object, ...]:
    table = EmbeddingTable.open(index_dir)
    assert table.vectors.shape == (8, 8)
    load_faiss(index_dir, table.manifest.faiss, table.encoder.dim)
    summaries = table.read_summaries(table.ids.tolist())
    return table.ids.tolist(), table.paths, table.vectors.tobytes(), summaries.tobytes()


def test_a_table_has_the_columns_asked_for_and_no_others(index_dir: Path) -> None:
    table = EmbeddingTable.open(index_dir)
    for columns in ([], ["path"], ["camera", "path", "id"], None):
        found = table.to_arrow(columns)
        assert columns is None or found.column_names == columns
        assert len(found) == 8 or not columns
    with pytest.raises(QueryError, match=r"has no column colour: choose of id, path, .*embedding"):
        table.to_arrow(["path", "colour"])


def test_a_flipped_byte_of_a_part_is_noticed_or_changes_nothing(index_dir: Path) -> None:
    (path,) = (index_dir / "parts").iterdir()
    whole, expected = path.read_bytes(), read_everything(index_dir)
    noticed = 0
    for place in range(0, len(whole), max(1, len(whole) // 100)):
        flip(path, place)
        try:
            assert read_everything(index_dir) == expected
        except IndexDamaged as error:
            noticed += 1
            assert "\n" not in str(error) and "--rebuild" in str(error)
        path.write_bytes(whole)
    assert noticed > 50


@pytest.mark.parametrize("pattern", ["parts/*.parquet", "*.faiss"])
@pytest.mark.parametrize("damage", ["cut", "gone", "grown"])
def test_a_file_of_another_size_is_noticed(index_dir: Path, pattern: str, damage: str) -> None:
    (path,) = index_dir.glob(pattern)
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content + b"\0")
    with pytest.raises(IndexDamaged, match="run `fwd2bot index DIR"):
        read_everything(index_dir)


def test_a_flipped_byte_of_the_faiss_file_is_noticed(index_dir: Path) -> None:
    (path,) = index_dir.glob("*.faiss")
    for place in (0, 30, path.stat().st_size - 1):
        flip(path, place)
        with pytest.raises(IndexDamaged, match="build it again from the parts"):
            read_everything(index_dir)
        flip(path, place)
    read_everything(index_dir)


def test_a_part_of_another_index_is_noticed(index_dir: Path) -> None:
    manifest = read_manifest(index_dir)
    write_manifest(index_dir, replace(manifest, encoder=replace(manifest.encoder, fingerprint="another")))
    with pytest.raises(IndexDamaged, match="its model"):
        EmbeddingTable.open(index_dir)


def test_rows_are_read_by_id_in_the_order_asked(index_dir: Path) -> None:
    manifest = read_manifest(index_dir)
    table = read_rows(index_dir, manifest, [6, 0, 6, 3], ["path"])
    assert table["id"].to_pylist() == [6, 0, 6, 3]
    assert len(read_rows(index_dir, manifest, [], ["path"])) == 0
    with pytest.raises(QueryError, match="no image has the id 8"):
        read_rows(index_dir, manifest, [8], ["path"])


def test_int8_loses_at_most_half_a_level() -> None:
    summaries = np.random.default_rng(0).standard_normal((5, 3, 64)).astype(np.float32)
    summaries[0, 0] *= 1000
    summaries[1, 1] = 0
    levels, scales = quantize_summaries(summaries)
    assert levels.dtype == np.int8 and scales.shape == (5, 3)
    assert (scales == np.abs(summaries).max(axis=-1) / np.float32(127)).all()
    error = np.abs(dequantize_summaries(levels, scales) - summaries).max(axis=-1)
    assert (error <= scales * 0.5001).all()
    assert quantize_summaries(summaries[:0])[0].shape == (0, 3, 64)
