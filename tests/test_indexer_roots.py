"""Sources of images other than a folder, and places where an index cannot be."""

import errno
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from encoders.base import IndexFailure, IndexNotFound, NothingToIndex
from indexer.audit import audit_index
from indexer.build import BuildReport, BuildSettings
from indexer.build import build as build_index
from indexer.manifest import read_manifest, write_manifest
from indexer.merge import merge_index
from indexer.roots import locate_root
from indexer.table import EmbeddingTable
from retrieval.search import Searcher
from tests.conftest import FakeEncoder, paint, run

Install = Callable[[FakeEncoder], None]


@pytest.fixture
def bucket(gallery: Path) -> Iterator[str]:
    """The gallery in fsspec's memory file system."""
    memory = fsspec.filesystem("memory")
    for path in gallery.rglob("*.png"):
        memory.pipe(f"/photos/{path.relative_to(gallery).as_posix()}", path.read_bytes())
    yield "memory://photos"
    memory.rm("/photos", recursive=True)


def test_a_url_is_indexed_and_followed_by_its_digests(
    bucket: str, tmp_path: Path, encoder: FakeEncoder, installed_encoder: Install
) -> None:
    installed_encoder(encoder)
    index = tmp_path / "index"
    assert build_index(bucket, index, encoder) == BuildReport(8, 0, 0, 0, 0)
    for same in (f"{bucket}/", "memory:///photos"):
        assert build_index(same, index, encoder) == BuildReport(0, 0, 8, 0, 0)
    fsspec.filesystem("memory").mv("/photos/below", "/photos/moved", recursive=True)
    assert build_index(bucket, index, encoder) == BuildReport(0, 4, 4, 4, 0)
    assert locate_root(read_manifest(index).root, index) == bucket
    assert Searcher.open(index).search("green")[0].path == "moved/green.png"
    assert run("search", "--paths", "-k", "1", "--index", str(index), "green").stdout == (
        "memory://photos/moved/green.png\n"
    )
    for name in ("green.png", "memory://photos/moved/green.png"):
        assert run("caption", "--index", str(index), name).stdout == "something green\n"


@pytest.mark.parametrize("url", ["memory://", "memory:///"])
def test_a_url_of_all_that_a_scheme_has_is_a_root(
    bucket: str, url: str, tmp_path: Path, encoder: FakeEncoder, installed_encoder: Install
) -> None:
    installed_encoder(encoder)
    assert build_index(url, tmp_path, encoder) == BuildReport(8, 0, 0, 0, 0)
    assert build_index(url, tmp_path, encoder) == BuildReport(0, 0, 8, 0, 0)
    (path,) = run("search", "--paths", "-k", "1", "--index", str(tmp_path), "green").stdout.splitlines()
    assert path == "memory://photos/below/green.png"
    assert run("caption", "--index", str(tmp_path), path).stdout == "something green\n"


@pytest.mark.parametrize(
    ("url", "path"), [("memory://photos", "below/green.png"), ("memory://", "photos/below/green.png")]
)
def test_a_url_below_a_url_can_be_merged(
    bucket: str, url: str, path: str, tmp_path: Path, encoder: FakeEncoder
) -> None:
    build_index(url, tmp_path / "all", encoder, BuildSettings(exclude=("below",)))
    build_index(f"{bucket}/below", tmp_path / "below", encoder)
    assert merge_index(tmp_path / "all", tmp_path / "below").added == 4
    assert path in EmbeddingTable.open(tmp_path / "all").paths


def test_a_folder_and_its_file_url_are_one_root(here: Path, tmp_path: Path, encoder: FakeEncoder) -> None:
    index = tmp_path / "index"
    for number, name in enumerate((f"file://{here}/", here, f"file://{here}")):
        assert build_index(name, index, encoder).reused == (8 if number else 0)
    write_manifest(index, replace(read_manifest(index), root=f"file://{here}/"))
    assert locate_root(read_manifest(index).root, index) == here
    assert run("search", "--paths", "-k", "1", "--index", str(index), "red").stdout == "red.png\n"
    assert run("index", f"file://{here}").exit_code == 0 and (here / ".fwd2bot").is_dir()
    with pytest.raises(IndexFailure, match="is the folder of the images"):
        run("index", f"file://{here}", "--index", str(here))
    with pytest.raises(NothingToIndex, match="is empty"):
        run("index", "file://")


def test_an_index_follows_its_folder_to_another_place(
    gallery: Path, tmp_path: Path, encoder: FakeEncoder, installed_encoder: Install
) -> None:
    installed_encoder(encoder)
    index, new = tmp_path / "index", tmp_path / "elsewhere" / "photos"
    build_index(gallery, index, encoder)
    shutil.copytree(gallery, new)
    (new / "red.png").touch()
    shutil.rmtree(gallery)
    with pytest.raises(IndexFailure, match=f"the index of {gallery}, not of {new}: .* or --moved where"):
        build_index(new, index, encoder)
    encoder.embedded = 0
    assert json.loads(run("index", str(new), "--index", str(index), "--moved", "--dry-run", "--json").stdout)
    assert locate_root(read_manifest(index).root, index) == gallery
    assert build_index(new, index, encoder, BuildSettings(moved=True)) == BuildReport(0, 1, 7, 0, 0)
    assert build_index(new, index, encoder) == BuildReport(0, 0, 8, 0, 0) and encoder.embedded == 0
    assert run("search", "--paths", "-k", "1", "--index", str(index), "red").stdout == f"{new}/red.png\n"


def test_an_index_follows_where_nothing_is_new_and_to_a_url_and_back(
    bucket: str, gallery: Path, tmp_path: Path, encoder: FakeEncoder
) -> None:
    build_index(gallery, tmp_path / "index", encoder)
    new = shutil.copytree(gallery, tmp_path / "new")  # keeps modification times
    for root, reused in ((new, 8), (bucket, 0), (gallery, 0), (gallery, 8)):
        report = build_index(root, tmp_path / "index", encoder, BuildSettings(moved=True))
        assert (report.reused, report.copied) == (reused, 8 - reused)
        assert str(locate_root(read_manifest(tmp_path / "index").root, tmp_path / "index")) == str(root)
    assert encoder.embedded == 8


def test_moved_needs_an_index_and_does_not_begin_one(here: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexNotFound, match="no index at"):
        run("index", ".", "--index", str(tmp_path / "typo"), "--moved")
    assert not (tmp_path / "typo").exists()
    with pytest.raises(IndexNotFound):
        build_index(here, tmp_path / "typo", FakeEncoder(), BuildSettings(moved=True))
    for options in (["--moved"], ["--moved", "--rebuild", "--index", str(tmp_path)]):
        assert run("index", ".", *options).exit_code == 2


def test_an_object_with_a_nul_in_its_name_is_left_out(
    bucket: str, tmp_path: Path, encoder: FakeEncoder
) -> None:
    memory = fsspec.filesystem("memory")
    memory.copy("/photos/red.png", "/photos/a.png\0/etc/passwd.png")
    memory.copy("/photos/red.png", "/photos/a\0.png")
    build_index(bucket, tmp_path, encoder)
    assert len(EmbeddingTable.open(tmp_path)) == 8 and list(audit_index(tmp_path)) == []


def test_no_index_goes_among_the_images(here: Path) -> None:
    before = sorted(here.iterdir())
    for place in (here, Path("below/..")):
        with pytest.raises(
            IndexFailure, match=r"is the folder of the images.*leave out --index for .*/\.fwd2bot"
        ):
            run("index", ".", "--index", str(place))
    assert sorted(here.iterdir()) == before
    assert run("index", ".", "--index", ".fwd2bot").exit_code == 0


def test_links_that_leave_the_folder_are_followed_only_when_asked(here: Path, tmp_path: Path) -> None:
    paint(tmp_path / "outside/far.png", "red", size=(9, 9))
    (here / "link").symlink_to(tmp_path / "outside")
    assert json.loads(run("index", ".", "--json").stdout)["indexed"] == 8
    assert json.loads(run("index", ".", "--json", "--follow-links").stdout)["indexed"] == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB, if the tests are allowed to mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full_leaves_the_index_as_it_was(
    gallery: Path, small_disk: Path, encoder: FakeEncoder
) -> None:
    index = small_disk / "index"
    build_index(gallery, index, encoder)
    before = EmbeddingTable.open(index).to_arrow()
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(1024))
    for number in range(8):
        paint(gallery / f"new{number}.png", "red", size=(9, 9 + number))
    with pytest.raises(OSError, match="No space left") as failure:
        build_index(gallery, index, encoder)
    assert failure.value.errno == errno.ENOSPC
    assert EmbeddingTable.open(index).to_arrow().equals(before)
    ballast.unlink()
    assert build_index(gallery, index, encoder) == BuildReport(8, 0, 8, 0, 0)
