"""Where an index may lie and be written, and where it is refused before anything is lost."""

import errno
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from encoders.base import IndexFailure
from indexer.audit import audit_index
from indexer.build import build as build_index
from indexer.compact import compact_index
from indexer.manifest import read_manifest, write_manifest
from indexer.merge import merge_index
from indexer.repair import repair_index
from tests.conftest import FakeEncoder, build


@pytest.mark.parametrize(
    "name",
    ["lock-holder.json", "manifest.json.tmp", "index-000001.faiss.tmp", "parts/part-000001.parquet.tmp"],
)
def test_nothing_is_written_through_a_link(
    gallery: Path, encoder: FakeEncoder, tmp_path: Path, name: str
) -> None:
    (tmp_path / "precious").write_text("as it was")
    (gallery / ".fwd2bot/parts").mkdir(parents=True)
    (gallery / ".fwd2bot" / name).symlink_to(tmp_path / "precious")
    assert build(gallery, encoder).indexed == 8
    assert list(audit_index(gallery / ".fwd2bot")) == []
    assert (tmp_path / "precious").read_text() == "as it was"


WRITERS: dict[str, Callable[[Path], object]] = {
    "build": lambda root: build(root, FakeEncoder()),
    "rebuild": lambda root: build(root, FakeEncoder(), rebuild=True),
    "compact": lambda root: compact_index(root / ".fwd2bot"),
    "merge": lambda root: merge_index(root / ".fwd2bot", root.parent / "other/.fwd2bot"),
    "repair": lambda root: repair_index(root / ".fwd2bot"),
}


@pytest.mark.parametrize("name", ["parts", "lock"])
@pytest.mark.parametrize("act", WRITERS)
def test_an_index_in_which_links_lead_out_is_not_written(
    gallery: Path, encoder: FakeEncoder, tmp_path: Path, act: str, name: str
) -> None:
    other = shutil.copytree(gallery, tmp_path / "other")
    for root in (gallery, other):
        build(root, encoder)
    index, before = gallery / ".fwd2bot", describe_files(other)
    write_manifest(index, replace(read_manifest(index), parts=(), faiss=None))
    (index / name).rename(tmp_path / "aside")
    (index / name).symlink_to(other / ".fwd2bot" / name)
    with pytest.raises(IndexFailure, match=f"{name} is a link"):
        WRITERS[act](gallery)
    assert describe_files(other) == before


def describe_files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_an_index_may_be_reached_by_a_link(gallery: Path, encoder: FakeEncoder, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert build_index(gallery, tmp_path / "link", encoder).indexed == 8
    assert build_index(gallery, tmp_path / "disk", encoder).reused == 8


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EPERM, errno.EROFS])
@pytest.mark.parametrize("step", ["mkdir", "open"])  # of the folder, of the lock-holder note
def test_a_place_that_cannot_be_written_is_refused_with_the_remedy(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch, step: str, reason: int
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(reason, os.strerror(reason), str(path))

    index = gallery / ".fwd2bot"
    with monkeypatch.context() as patch:
        patch.setattr(Path, step, refuse)
        with pytest.raises(IndexFailure, match=r"cannot be written \(.*\): keep the index elsewhere"):
            build(gallery, encoder)
    assert encoder.embedded == 0
    build(gallery, encoder)
    monkeypatch.setattr(Path, step, refuse)
    for act in (compact_index, repair_index, lambda _: build(gallery, encoder)):
        with pytest.raises(IndexFailure, match=r"\.fwd2bot is read-only \(.*\): make it writable"):
            act(index)


@pytest.mark.parametrize("name", ["file", "file/index"])
def test_a_file_in_the_way_of_an_index_is_left_as_it_is(
    gallery: Path, encoder: FakeEncoder, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_text("as it was")
    with pytest.raises(IndexFailure, match="a file is in its way"):
        build_index(gallery, tmp_path / name, encoder)
    assert (tmp_path / "file").read_text() == "as it was" and encoder.embedded == 0


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_disk_that_flushes_no_folder_holds_an_index_and_one_that_fails_does_not(
    gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    flush = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    with nullcontext() if number == errno.EINVAL else pytest.raises(OSError, match="Input/output"):
        assert build(gallery, encoder).indexed == 8 and list(audit_index(gallery / ".fwd2bot")) == []
