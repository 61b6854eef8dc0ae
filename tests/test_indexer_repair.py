"""A lost or damaged manifest is made again from the parts, and decides nothing before."""

import errno
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import xxhash

from encoders.base import IndexDamaged, IndexFailure, ManifestDamaged
from indexer import parts, repair, writer
from indexer.audit import audit_index
from indexer.build import BuildSettings, plan_build
from indexer.build import build as build_index
from indexer.compact import compact_index
from indexer.manifest import Manifest, read_manifest, write_manifest
from indexer.repair import repair_index, restore_manifest
from indexer.roots import locate_root
from indexer.table import EmbeddingTable
from tests.conftest import FakeEncoder, Witness, build, paint


@pytest.fixture
def index(gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of several parts, with dead rows; what its parts replaced is still there."""
    monkeypatch.setattr(writer, "ROWS_PER_COMMIT", 3)
    monkeypatch.setattr(parts, "ROWS_PER_GROUP", 2)
    build(gallery, encoder)
    paint(gallery / "red.png", "white", size=(9, 9))
    (gallery / "blue.png").unlink()
    build(gallery, encoder)
    return gallery / ".fwd2bot"


def list_parts(index: Path) -> set[str]:
    return {path.name for path in (index / "parts").iterdir()}


def forget_time(index: Path) -> object:
    """The manifest without what a restored one cannot know: its dates and its FAISS file."""
    return replace(read_manifest(index), created="", updated="", faiss=None)


def test_an_index_that_lost_its_manifest_embeds_nothing_again(index: Path, encoder: FakeEncoder) -> None:
    before, rows, encoder.embedded = forget_time(index), EmbeddingTable.open(index).to_arrow(), 0
    (index / "manifest.json").unlink()
    report = build(index.parent, encoder)
    assert (report.indexed, report.copied, report.reused, encoder.embedded) == (0, 0, 7, 0)
    assert forget_time(index) == before
    assert EmbeddingTable.open(index).to_arrow().equals(rows)
    assert list(audit_index(index)) == []


def test_an_index_elsewhere_that_lost_its_manifest_is_that_of_the_folder_named(
    gallery: Path, tmp_path: Path, encoder: FakeEncoder
) -> None:
    index = tmp_path / "elsewhere"
    build_index(gallery, index, encoder)
    before = forget_time(index)
    (index / "manifest.json").unlink()
    assert build_index(gallery, index, encoder).reused == 8
    assert forget_time(index) == before


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 2}'])
def test_repair_makes_a_manifest_again(index: Path, content: bytes) -> None:
    before, rows = forget_time(index), EmbeddingTable.open(index).to_arrow()
    (index / "manifest.json").write_bytes(content)
    (fault,) = repair_index(index)
    count = sum(part.rows for part in before.parts)
    assert "manifest.json is damaged" in fault.sentence and f"from {count} rows" in fault.sentence
    assert str(index.parent) in fault.sentence
    assert forget_time(index) == before
    assert EmbeddingTable.open(index).to_arrow().equals(rows)
    assert list(audit_index(index)) == [] == repair_index(index)


def test_repair_keeps_the_folder_that_a_damaged_manifest_still_names(
    gallery: Path, tmp_path: Path, encoder: FakeEncoder
) -> None:
    index = tmp_path / "elsewhere"
    build_index(gallery, index, encoder)
    path = index / "manifest.json"
    path.write_bytes(path.read_bytes()[:200])
    repair_index(index)
    assert locate_root(read_manifest(index).root, index) == gallery


def test_any_flipped_bit_of_a_manifest_is_noticed_and_no_part_is_deleted(index: Path) -> None:
    path, parts = index / "manifest.json", list_parts(index)
    sound, manifest = path.read_bytes(), read_manifest(index)
    last = sound.index(b'"digest": "', sound.rindex(b"]"))  # a key that older versions did not write
    for place in range(len(sound)):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << place % 7]) + sound[place + 1 :])
        try:
            assert read_manifest(index) == manifest and (last <= place or sound[place : place + 1].isspace())
        except ManifestDamaged:
            writer.remove_orphans(index)
    assert list_parts(index) >= parts


@pytest.mark.parametrize("act", [compact_index, repair_index, writer.remove_orphans])
def test_without_a_manifest_nothing_is_deleted(index: Path, act) -> None:
    (index / "manifest.json").unlink()
    parts = list_parts(index)
    with suppress(IndexFailure):
        act(index)
    assert list_parts(index) == parts


def test_a_model_that_was_moved_is_still_the_same(gallery: Path, encoder: FakeEncoder) -> None:
    build(gallery, encoder)
    paint(gallery / "new.png", "white", size=(9, 9))
    build(gallery, FakeEncoder("moved", encoder.fingerprint))
    index = gallery / ".fwd2bot"
    before = forget_time(index)
    (index / "manifest.json").write_bytes(b"")
    repair_index(index)
    assert forget_time(index) == before


def test_parts_come_back_in_the_order_of_their_ids(index: Path) -> None:
    first, *_ = read_manifest(index).parts
    (index / "parts" / first.name).rename(index / "parts" / "part-000099.parquet")  # as after a compaction
    manifest, _ = restore_manifest(index, "..")
    assert manifest is not None and manifest.parts[0].name == "part-000099.parquet"
    assert [part.first_id for part in manifest.parts] == sorted(part.first_id for part in manifest.parts)


def test_rows_of_parts_that_were_joined_count_once(index: Path) -> None:
    old = {name: (index / "parts" / name).read_bytes() for name in list_parts(index)}
    compact_index(index)
    rows = EmbeddingTable.open(index).to_arrow()
    for name, content in old.items():
        (index / "parts" / name).write_bytes(content)
    (index / "manifest.json").unlink()
    manifest, damaged = restore_manifest(index, "..")
    assert manifest is not None and not damaged
    write_manifest(index, manifest)
    assert EmbeddingTable.open(index).to_arrow().equals(rows)


def test_parts_of_another_model_are_left_out(gallery: Path, encoder: FakeEncoder) -> None:
    build(gallery, encoder)
    build_index(gallery, gallery / ".fwd2bot", FakeEncoder("other", "fake-2"), BuildSettings(rebuild=True))
    index = gallery / ".fwd2bot"
    before = forget_time(index)
    assert len(list_parts(index)) == 2
    (index / "manifest.json").write_bytes(b"")
    repair_index(index)
    assert forget_time(index) == before


@pytest.mark.parametrize(("commits", "reused"), [(1, 7), (2, 6)])
def test_a_rebuild_that_was_killed_at_its_first_commit_is_not_taken_for_the_index(
    index: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch, commits: int, reused: int
) -> None:
    """The second commit shows that the first was made, and has replaced the index."""

    def kill(index_dir: Path, manifest: Manifest) -> Manifest:
        if len(manifest.parts) == commits:
            raise SystemError("killed")
        return write_manifest(index_dir, manifest)

    other = FakeEncoder("other", "fake-2")
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(writer, "write_manifest", kill)
        build(index.parent, other, rebuild=True)
    (index / "manifest.json").unlink()
    assert build(index.parent, encoder if commits == 1 else other).reused == reused
    assert list(audit_index(index)) == []


def damage_first_part(index: Path) -> Path:
    victim = index / "parts" / read_manifest(index).parts[0].name
    content = bytearray(victim.read_bytes())
    chunk = pq.read_metadata(victim).row_group(0).column(0)
    content[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    victim.write_bytes(content)
    return victim


def test_a_run_names_the_damaged_parts_of_an_index_that_lost_its_manifest(
    index: Path, encoder: FakeEncoder
) -> None:
    victim, witness = damage_first_part(index), Witness()
    (index / "manifest.json").unlink()
    assert plan_build(index.parent, index, observer=witness).reused == 4
    report = build_index(index.parent, index, encoder, observer=witness)
    assert (report.indexed + report.copied, report.reused) == (3, 4)
    assert witness.skipped == {str(victim): "this part is damaged, and its images are read again"}


def test_a_damaged_part_is_named_and_left_out(index: Path, encoder: FakeEncoder) -> None:
    victim = damage_first_part(index)
    (index / "manifest.json").write_bytes(b"")
    faults = [fault.sentence for fault in repair_index(index)]
    assert len(faults) == 2 and victim.name in faults[1]
    assert list(audit_index(index)) == []
    assert len(build(index.parent, encoder)) and len(EmbeddingTable.open(index)) == 7


def test_a_part_that_cannot_be_read_just_now_is_waited_for(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (index / "manifest.json").write_bytes(b"")
    parts = list_parts(index)

    def fail(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(repair, "digest_file", fail)
    with pytest.raises(IndexFailure, match="cannot be read"):
        repair_index(index)
    assert list_parts(index) == parts and (index / "manifest.json").read_bytes() == b""


def test_an_index_without_a_sound_part_says_what_is_left_to_do(index: Path) -> None:
    for path in (index / "parts").iterdir():
        path.write_bytes(b"PAR1")
    os.mkfifo(index / "parts/part-000099.parquet")
    (index / "manifest.json").write_bytes(b"")
    with pytest.raises(IndexDamaged, match=r"no sound part.*--rebuild"):
        repair_index(index)


def test_a_manifest_has_the_digest_of_all_else_and_one_of_an_older_version_none(index: Path) -> None:
    path, before = index / "manifest.json", read_manifest(index)
    data = json.loads(path.read_text())
    digest = data.pop("digest")
    assert digest == xxhash.xxh3_128(json.dumps(data, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(data))
    assert read_manifest(index) == before


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))])
def test_a_faiss_file_that_finds_no_memory_is_not_to_be_built_again(
    index: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    before = read_manifest(index)
    monkeypatch.setattr("indexer.faiss_file.check_layout", refuse)
    for act in (repair_index, lambda index: list(audit_index(index))):
        with pytest.raises(IndexFailure, match=r"faiss cannot be opened \(no memory left\)") as caught:
            act(index)
        assert not isinstance(caught.value, IndexDamaged)
    assert read_manifest(index) == before
