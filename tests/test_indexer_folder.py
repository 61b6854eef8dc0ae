"""Finding images in a folder: by name, once each, in order, and not outside it."""

import os
from pathlib import Path

import pytest

from encoders.base import NothingToIndex
from indexer.decode import read_photo
from indexer.paths import escape_path, show_path, unescape_path
from indexer.sources import open_source
from tests.pictures import SIZE, draw_corner


def names(root: Path, *exclude: str) -> list[str]:
    return [file.path for file in open_source(root).find(exclude).files]


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def test_images_are_found_by_extension_sorted_and_hidden_ones_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a/z.png", "a.webp", "notes.txt", ".hidden/c.jpg", ".fwd2bot/d.jpg", "._e.jpg")
    assert names(tmp_path) == ["a.webp", "a/z.png", "b.JPG"]


def test_excluded_globs_match_names_and_paths(tmp_path: Path) -> None:
    touch(tmp_path, "keep/a.jpg", "keep/thumb_a.jpg", "trash/b.jpg", "deep/trash/c.jpg")
    assert names(tmp_path, "thumb_*", "trash") == ["keep/a.jpg"]
    assert names(tmp_path, "keep/*") == ["deep/trash/c.jpg", "trash/b.jpg"]
    assert names(tmp_path, "trash/", "./keep") == []
    assert names(tmp_path, "./deep/trash/", "keep/") == ["trash/b.jpg"]


def test_a_folder_linked_in_a_circle_is_visited_once_and_by_its_own_path(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg", "elsewhere_outside/b.jpg")
    root = tmp_path / "photos"
    (root / "again").symlink_to(root)
    (root / "a_link").symlink_to(root / "real")
    touch(root, "real/c.jpg")
    (root / "outside").symlink_to(tmp_path / "elsewhere_outside")
    (root / "dead.jpg").symlink_to(root / "nothing.jpg")
    (root / "self.jpg").symlink_to(root / "self.jpg")
    assert names(root) == ["a.jpg", "real/c.jpg"]
    assert [file.path for file in open_source(root).find(follow_links=True).files] == [
        "a.jpg",
        "outside/b.jpg",
        "real/c.jpg",
    ]


def test_a_missing_folder_has_its_own_sentence(tmp_path: Path) -> None:
    with pytest.raises(NothingToIndex, match="is not a folder"):
        open_source(tmp_path / "absent").find()


@pytest.mark.parametrize(
    "raw",
    [
        *(b"plain.jpg", "Käse ☃.jpg".encode(), b"\xff\xfe.jpg", rb"back\slash\x41.jpg", b"a\nb.jpg"),
        "turned\u202egpj.exe.jpg".encode(),
    ],
)
def test_any_name_survives_being_stored_and_shows_as_one_line(raw: bytes) -> None:
    path = os.fsdecode(raw)
    stored = escape_path(path)
    stored.encode("utf-8")
    assert unescape_path(stored) == path
    shown = show_path(path)
    shown.encode("utf-8")
    assert len(shown.splitlines()) == 1 and "\u202e" not in shown


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
def test_names_that_are_no_text_are_found_and_read(tmp_path: Path) -> None:
    for raw in (b"\xff\xfe.png", b"new\nline.png"):
        draw_corner().save(tmp_path / "photo.png")
        (tmp_path / "photo.png").rename(tmp_path / os.fsdecode(raw))
    files = open_source(tmp_path).find().files
    assert [file.path for file in files] == [r"\xff\xfe.png", "new\nline.png"]
    assert [read_photo(open_source(tmp_path), file, SIZE, 200.0).error for file in files] == ["", ""]


def test_links_that_lead_out_are_named_once_and_followed_only_when_asked(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg", "photos/below/b.jpg", "photos_too/c.jpg", "d.jpg")
    root = tmp_path / "photos"
    (root / "below" / "folder").symlink_to(tmp_path / "photos_too")  # a path that begins like the root's
    (root / "file.jpg").symlink_to(tmp_path / "d.jpg")
    (root / "notes.txt").symlink_to(tmp_path / "d.jpg")
    (root / "inside.jpg").symlink_to(Path("below", "b.jpg"))
    (root / "dead.jpg").symlink_to(tmp_path / "nothing.jpg")
    found = open_source(root).find()
    assert [file.path for file in found.files] == ["a.jpg", "below/b.jpg", "inside.jpg"]
    assert found.unreadable == []
    (refused,) = found.refused
    assert refused == (
        "file.jpg",
        "the link leads out of the folder and is not followed, nor are 1 more (--follow-links)",
    )
    followed = open_source(root).find(follow_links=True)
    assert [file.path for file in followed.files] == [
        "a.jpg",
        "below/b.jpg",
        "below/folder/c.jpg",
        "file.jpg",
        "inside.jpg",
    ]
    assert followed.refused == []


def test_a_root_that_is_itself_a_link_is_no_way_out(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg")
    (tmp_path / "photos/again.jpg").symlink_to(tmp_path / "photos/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    assert names(tmp_path / "link") == ["a.jpg", "again.jpg"]


def test_a_time_that_no_column_can_hold_stops_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "late.jpg")
    os.utime(tmp_path / "late.jpg", ns=(10**19, 10**19))
    (file,) = open_source(tmp_path).find().files
    assert file.mtime_ns == min((tmp_path / "late.jpg").stat().st_mtime_ns, 2**63 - 1)


def test_a_url_of_a_file_is_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    assert [file.path for file in open_source(f"file://{tmp_path}").find().files] == ["a.jpg"]


def test_reading_more_than_there_is_takes_no_more_memory_than_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a header that promises a terabyte")
    with open_source(tmp_path).open("a.jpg") as stream:
        assert stream.read(2) == b"a " and stream.read(1 << 40) == b"header that promises a terabyte"
        stream.seek(0)
        assert len(stream.read()) == 33 and stream.read(1) == b""
