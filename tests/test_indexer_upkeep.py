"""Merging, compacting and repairing an index, and what concurrent readers see."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from encoders.base import EncoderMismatch, IndexDamaged, IndexFailure
from indexer import compact, writer
from indexer.audit import audit_index, describe_index
from indexer.build import BuildReport, plan_build
from indexer.compact import compact_index
from indexer.manifest import read_manifest, write_manifest
from indexer.merge import MergeReport, create_above, merge_index
from indexer.parts import find_rows
from indexer.repair import repair_index
from indexer.table import EmbeddingTable
from retrieval.search import Searcher
from tests.conftest import FakeEncoder, build, open_table, paint, write_rows

Install = Callable[[FakeEncoder], None]


def wear(root: Path, encoder: FakeEncoder) -> None:
    """Index, then change one file, move one and delete one, and index again."""
    build(root, encoder)
    paint(root / "red.png", "blue", size=(50, 50))
    (root / "blue.png").unlink()
    (root / "below/yellow.png").rename(root / "moved.png")
    build(root, encoder)


def test_a_compaction_keeps_images_and_ids_and_drops_all_else(gallery: Path, encoder: FakeEncoder) -> None:
    wear(gallery, encoder)
    index = gallery / ".fwd2bot"
    before, faiss = open_table(gallery).to_arrow(), read_manifest(index).faiss
    assert describe_index(index).dead == 5  # the old red, blue and yellow, and two deletion rows
    report = compact_index(index)
    assert (report.dropped, report.parts) == (5, 1) and report.freed > 0
    assert open_table(gallery).to_arrow().equals(before)
    assert read_manifest(index).faiss == faiss and list(audit_index(index)) == []
    assert [path.name for path in (index / "parts").iterdir()] == [read_manifest(index).parts[0].name]
    assert compact_index(index) == compact.CompactReport(0, 0, 1)
    assert build(gallery, encoder) == BuildReport(0, 0, 7, 0, 0)


def test_a_full_part_without_dead_rows_is_left_alone(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (writer, compact):
        monkeypatch.setattr(module, "ROWS_PER_PART", 4)
    monkeypatch.setattr(writer, "ROWS_PER_COMMIT", 2)
    build(gallery, encoder)
    first, *_ = read_manifest(gallery / ".fwd2bot").parts
    (gallery / "white.png").unlink()
    build(gallery, encoder)
    compact_index(gallery / ".fwd2bot")
    parts = read_manifest(gallery / ".fwd2bot").parts
    assert parts[0] == first and [part.rows for part in parts] == [6, 1]
    assert list(audit_index(gallery / ".fwd2bot")) == []


def test_readers_go_on_while_their_parts_are_replaced(
    gallery: Path, encoder: FakeEncoder, installed_encoder: Install
) -> None:
    installed_encoder(encoder)
    build(gallery, encoder)
    searcher, table = Searcher.open(gallery / ".fwd2bot"), open_table(gallery)
    summaries = table.read_summaries(table.ids.tolist())
    (gallery / "red.png").unlink()
    build(gallery, encoder)
    compact_index(gallery / ".fwd2bot")
    paths = {hit.path for hit in searcher.search("white", 100)}
    assert len(paths) == 7 and "red.png" not in paths
    kept = [place for place, path in enumerate(table.paths) if path != "red.png"]
    assert np.array_equal(table.read_summaries(table.ids[kept].tolist()), summaries[kept])
    with pytest.raises(IndexDamaged, match="open it again"):
        _ = table.vectors


def test_a_reader_is_told_of_a_rebuild(
    gallery: Path, encoder: FakeEncoder, installed_encoder: Install
) -> None:
    installed_encoder(encoder)
    build(gallery, encoder)
    searcher = Searcher.open(gallery / ".fwd2bot")
    build(gallery, encoder, rebuild=True)
    build(gallery, encoder)  # which removes the old parts
    with pytest.raises(IndexFailure, match="rebuilt since"):
        searcher.search("red")


@pytest.mark.parametrize("compacted", [False, True])
def test_a_run_that_ends_meanwhile_is_no_fault(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch, compacted: bool
) -> None:
    build(gallery, encoder)
    index = gallery / ".fwd2bot"
    before = read_manifest(index)
    wear(gallery, encoder)
    if compacted:  # then the files that the old manifest names are gone
        compact_index(index)
    manifests = iter([before])
    monkeypatch.setattr(
        "indexer.audit.read_manifest", lambda index: next(manifests, None) or read_manifest(index)
    )
    assert list(audit_index(index)) == []
    manifests = iter([before])
    assert describe_index(index).images == (7 if compacted else 8)


def test_ids_are_found_across_gaps(gallery: Path, encoder: FakeEncoder) -> None:
    wear(gallery, encoder)
    index = gallery / ".fwd2bot"
    compact_index(index)
    manifest, ids = read_manifest(index), open_table(gallery).ids.tolist()
    everything = list(range(-1, manifest.next_id + 2))
    assert find_rows(index, manifest, everything, ["path"])["id"].to_pylist() == ids
    assert find_rows(index, manifest, everything[::-1], [])["id"].to_pylist() == ids[::-1]


@pytest.fixture
def two(gallery: Path, encoder: FakeEncoder) -> tuple[Path, Path]:
    """The index of a gallery without its subfolder, and one of that subfolder."""
    build(gallery, encoder, exclude=("below",))
    build(gallery / "below", encoder)
    return gallery / ".fwd2bot", gallery / "below/.fwd2bot"


def test_a_merge_adds_what_is_new_below_its_folder(
    two: tuple[Path, Path], gallery: Path, encoder: FakeEncoder
) -> None:
    theirs = {row["path"]: row for row in EmbeddingTable.open(two[1]).to_arrow().to_pylist()}
    assert merge_index(*two) == MergeReport(added=4, known=0)
    merged = {row["path"]: row for row in open_table(gallery).to_arrow().to_pylist()}
    assert len(merged) == 8 and list(audit_index(two[0])) == []
    for path, row in theirs.items():
        assert {**merged[f"below/{path}"], "id": 0, "path": ""} == {**row, "id": 0, "path": ""}
    assert merge_index(*two) == MergeReport(added=0, known=4)
    assert build(gallery, encoder) == BuildReport(0, 0, 8, 0, 0)


def test_a_merge_brings_along_which_files_cannot_be_read(
    two: tuple[Path, Path], gallery: Path, encoder: FakeEncoder
) -> None:
    (gallery / "below/broken.png").write_bytes(b"")
    build(gallery / "below", encoder)
    assert merge_index(*two) == MergeReport(added=5, known=0)
    plan = plan_build(gallery, two[0])
    assert (len(plan.fresh), plan.skipped_before) == (0, 1)


def test_a_source_that_is_compacted_while_it_is_merged_is_not_called_damaged(
    two: tuple[Path, Path], gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (gallery / "below/green.png").unlink()
    build(gallery / "below", encoder)
    with monkeypatch.context() as patch, pytest.raises(IndexFailure, match="merge again") as caught:
        patch.setattr("indexer.merge.audit_part", lambda *_, **__: compact_index(two[1]))
        merge_index(*two)
    assert not isinstance(caught.value, IndexDamaged)
    assert merge_index(*two) == MergeReport(added=3, known=0)


def test_two_folders_side_by_side_merge_into_an_index_of_the_one_above(
    gallery: Path, encoder: FakeEncoder, tmp_path: Path
) -> None:
    build(gallery, encoder)
    paint(tmp_path / "scans/one.png", "red", size=(9, 9))
    build(tmp_path / "scans", encoder)
    one, other, out = gallery / ".fwd2bot", tmp_path / "scans/.fwd2bot", tmp_path / ".fwd2bot"
    with pytest.raises(IndexFailure, match=r"does not lie in .* give `--out PATH`"):
        merge_index(one, other)
    for _ in range(2):
        create_above(out, one, other)
        merge_index(out, one)
        merge_index(out, other)
    paths = EmbeddingTable.open(out).paths
    assert len(paths) == 9 and "scans/one.png" in paths and "gallery/below/white.png" not in paths
    assert build(tmp_path, encoder) == BuildReport(0, 0, 9, 0, 0)


def test_indexes_of_other_models_or_tokens_do_not_merge(two: tuple[Path, Path], gallery: Path) -> None:
    build(gallery / "below", FakeEncoder(name="other", fingerprint="fake-2"), rebuild=True)
    with pytest.raises(EncoderMismatch, match=r"tiny \(fake-1\) and .* other \(fake-2\)"):
        merge_index(*two)
    with pytest.raises(EncoderMismatch):
        create_above(gallery / "both", *two)
    assert not (gallery / "both/manifest.json").exists()
    build(gallery / "below", FakeEncoder(), rebuild=True, tokens="float16")
    with pytest.raises(IndexFailure, match=r"tokens as int8 and .* as float16"):
        merge_index(*two)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[10] ^= 0x55
    path.write_bytes(content)


def test_a_repair_drops_damaged_parts_and_the_next_run_embeds_them_again(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ROWS_PER_COMMIT", 3)
    build(gallery, encoder)
    index = gallery / ".fwd2bot"
    next_id = read_manifest(index).next_id
    damage(index / "parts" / read_manifest(index).parts[1].name)
    with pytest.raises(IndexDamaged, match="verify --repair"):
        open_table(gallery).to_arrow()
    faults = repair_index(index)
    assert sum(fault.part.rows for fault in faults if fault.part) == 3
    assert list(audit_index(index)) == [] and len(open_table(gallery)) == 5
    assert read_manifest(index).next_id == next_id
    assert build(gallery, encoder) == BuildReport(3, 0, 5, 0, 0)
    assert list(audit_index(index)) == [] and len(open_table(gallery)) == 8


@pytest.mark.parametrize("harm", ["damage", "unlink"])
def test_a_repair_builds_the_faiss_file_anew(gallery: Path, encoder: FakeEncoder, harm: str) -> None:
    build(gallery, encoder)
    index = gallery / ".fwd2bot"
    (path,) = index.glob("*.faiss")
    damage(path) if harm == "damage" else path.unlink()
    (fault,) = repair_index(index)
    assert path.name in fault.sentence and fault.part is None
    assert list(audit_index(index)) == [] == repair_index(index)


def test_a_faiss_file_of_other_images_is_found_and_repaired(gallery: Path, encoder: FakeEncoder) -> None:
    build(gallery, encoder)
    index = gallery / ".fwd2bot"
    old = read_manifest(index).faiss
    shutil.copy(next(index.glob("*.faiss")), gallery / "kept")
    paint(gallery / "new.png", "red", size=(9, 9))
    build(gallery, encoder)
    manifest = read_manifest(index)
    assert old is not None and manifest.faiss is not None
    shutil.copy(gallery / "kept", index / old.name)
    write_manifest(index, replace(manifest, faiss=replace(old, next_id=manifest.next_id)))
    (fault,) = audit_index(index)
    assert "images are not those" in fault.sentence
    repair_index(index)
    assert list(audit_index(index)) == []


def test_a_path_that_leads_out_of_the_folder_is_a_fault_and_no_hit(
    gallery: Path, encoder: FakeEncoder, installed_encoder: Install
) -> None:
    installed_encoder(encoder)
    build(gallery, encoder)
    index = gallery / ".fwd2bot"
    manifest = read_manifest(index)
    path = index / "parts" / manifest.parts[0].name
    rows = pq.read_table(path)
    nul = r"a.png\x00/etc/passwd.png"  # two paths in the output of `search -0`
    for evil in ("../outside.png", "/etc/passwd.png", r"a/\x2e./b.png", r"\x2fetc/passwd.png", nul, "a\0b/c"):
        paths = [evil, *rows["path"].to_pylist()[1:]]
        place = rows.column_names.index("path")
        changed = rows.set_column(place, rows.schema.field("path"), [paths])
        write_rows(index, changed)
        assert "leads out of the folder" in next(audit_index(index)).sentence
        with pytest.raises(IndexDamaged, match="has an image outside its folder"):
            Searcher.open(index).search("red", 8)


def test_a_manifest_of_absurd_size_is_refused(gallery: Path, encoder: FakeEncoder) -> None:
    build(gallery, encoder)
    with (gallery / ".fwd2bot/manifest.json").open("r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(IndexDamaged, match="are the most"):
        open_table(gallery)
