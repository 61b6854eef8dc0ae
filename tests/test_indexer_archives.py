"""Archives: their images are read in place, and nothing they say about themselves is trusted."""

import io
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from indexer import archives
from indexer.sources import open_source
from tests.conftest import FakeEncoder, build, open_table
from tests.pictures import draw_bytes, draw_corner, read, read_all

Entries = dict[str, bytes]
Packer = Callable[[Path, Entries], Path]


def pack_zip(path: Path, entries: Entries, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def pack_stored(path: Path, entries: Entries) -> Path:
    return pack_zip(path, entries, zipfile.ZIP_STORED)


def pack_tar(path: Path, entries: Entries, kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def pack_gnu(path: Path, entries: Entries) -> Path:
    return pack_tar(path, entries, tarfile.GNU_FORMAT)


PACKERS = {"zip": pack_zip, "stored.ZIP": pack_stored, "tar": pack_tar, "gnu.tar": pack_gnu}


@pytest.mark.parametrize("suffix", PACKERS)
def test_images_in_an_archive_are_those_that_were_packed(tmp_path: Path, suffix: str) -> None:
    png, jpeg = draw_bytes(), draw_bytes("JPEG")
    long = "ö" * 120
    entries = {f"{long}/a.png": png, "./b/c.JPG": jpeg, "d.txt": b"no image", "b//e.png": png}
    entries |= {".hidden/f.png": png, "__MACOSX/._a.png": b"x", "b/.g.png": png, "b/h.png": png}
    archive = PACKERS[suffix](tmp_path / f"shard.{suffix}", entries)
    (tmp_path / "whole.png").write_bytes(png)
    photos = read_all(tmp_path)
    inside = ["b/c.JPG", "b/e.png", "b/h.png", f"{long}/a.png"]
    assert list(photos) == [*(f"{archive.name}/{name}" for name in inside), "whole.png"]
    assert {photo.error for photo in photos.values()} == {""}
    whole = read(tmp_path / "whole.png")
    member = photos[f"{archive.name}/{long}/a.png"]
    assert (member.digest, member.file.size) == (whole.digest, len(png))
    assert member.file.mtime_ns == archive.stat().st_mtime_ns
    assert np.array_equal(np.asarray(member.image), np.asarray(whole.image))


def test_a_folder_may_be_named_like_an_archive(tmp_path: Path) -> None:
    (tmp_path / "old.zip" / "new.tar").mkdir(parents=True)
    draw_corner().save(tmp_path / "old.zip" / "a.png")
    pack_tar(tmp_path / "old.zip" / "new.tar" / "inner.tar", {"b.png": draw_bytes()})
    photos = read_all(tmp_path)
    assert list(photos) == ["old.zip/a.png", "old.zip/new.tar/inner.tar/b.png"]
    assert {photo.error for photo in photos.values()} == {""}


def test_exclusion_reaches_into_archives(tmp_path: Path) -> None:
    pack_zip(tmp_path / "a.zip", {"keep/b.png": b"x", "trash/c.png": b"x", "keep/thumb_d.png": b"x"})
    pack_tar(tmp_path / "b.tar", {"e.png": b"x"})
    found = open_source(tmp_path).find(["trash", "thumb_*", "*.tar"])
    assert [file.path for file in found.files] == ["a.zip/keep/b.png"]
    assert open_source(tmp_path).find(["a.zip/keep", "b.tar"]).files[0].path == "a.zip/trash/c.png"


@pytest.mark.parametrize("suffix", PACKERS)
def test_names_that_lead_out_are_refused_in_one_line(tmp_path: Path, suffix: str) -> None:
    names = ["../a.png", "/b.png", "c/../../d.png", "e\\..\\f.png", "C:/g.png", "fine/h.png", "../not.txt"]
    PACKERS[suffix](tmp_path / f"a.{suffix}", dict.fromkeys(names, draw_bytes()))
    found = open_source(tmp_path).find()
    assert [file.path for file in found.files] == [f"a.{suffix}/fine/h.png"]
    reason = "left out of it: ../a.png and 4 more, as links, devices or names that lead elsewhere"
    assert found.refused == [(f"a.{suffix}", f"{reason} or are too long")]


def test_a_refused_name_is_shown_as_one_printable_line(tmp_path: Path) -> None:
    pack_tar(tmp_path / "a.tar", {"../\x1b[2J\n\udcff.png": b"x"})
    ((_, reason),) = open_source(tmp_path).find().refused
    assert r"../\x1b[2J\x0a\xff.png, as links" in reason


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "secret.png").write_bytes(draw_bytes())
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo("a.png")
        entry.type, entry.linkname = kind, str(tmp_path / "secret.png")
        archive.addfile(entry)
    found = open_source(tmp_path).find()
    assert [file.path for file in found.files] == ["secret.png"]
    assert found.refused[0][0] == "a.tar" and "left out of it: a.png" in found.refused[0][1]


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        entry = zipfile.ZipInfo("a.png")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    found = open_source(tmp_path).find()
    assert not found.files and "left out of it: a.png" in found.refused[0][1]


@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize("content", [b"", b"no archive at all" * 99, b"PK\5\6" + b"\xff" * 18])
def test_an_archive_that_cannot_be_read_is_one_line_and_no_stop(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    (tmp_path / f"bad.{suffix}").write_bytes(content)
    draw_corner().save(tmp_path / "good.png")
    found = open_source(tmp_path).find()
    assert [file.path for file in found.files] == ["good.png"]
    ((path, reason),) = found.unreadable
    assert path == f"bad.{suffix}" and "cannot be read" in reason and len(reason.splitlines()) == 1


def test_of_a_damaged_tar_what_comes_before_the_damage_is_read(tmp_path: Path) -> None:
    entries = {f"{number}.png": draw_bytes() for number in range(4)}
    path = pack_tar(tmp_path / "a.tar", entries, tarfile.USTAR_FORMAT)
    content = bytearray(path.read_bytes())
    third = content.index(b"2.png")
    content[third + 100 : third + 160] = b"\xff" * 60
    path.write_bytes(content)
    found = open_source(tmp_path).find()
    assert [file.path for file in found.files] == ["a.tar/0.png", "a.tar/1.png"]
    assert [path for path, _ in found.unreadable] == ["a.tar"]  # so that the others are not marked deleted


def test_a_tar_cut_off_within_a_member_says_so(tmp_path: Path) -> None:
    path = pack_tar(tmp_path / "a.tar", {"a.png": draw_bytes(), "b.bmp": draw_bytes("BMP")})
    path.write_bytes(path.read_bytes()[:3000])
    photos = read_all(tmp_path)
    assert photos["a.tar/a.png"].error == ""
    assert photos["a.tar/b.bmp"].error == "the archive ends within it" and not photos["a.tar/b.bmp"].unread


def test_a_tar_that_sends_its_reader_round_in_circles_is_left(tmp_path: Path) -> None:
    content = bytearray(
        pack_tar(tmp_path / "a.tar", dict.fromkeys(("a.png", "b.png", "c.png"), b"")).read_bytes()
    )
    header = memoryview(content)[1024:1536]
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # c.png has size -1024, which leads back to b.png
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(content)
    found = open_source(tmp_path).find()
    assert [file.path for file in found.files] == ["a.tar/a.png", "a.tar/b.png"]
    assert "ends before it begins" in found.unreadable[0][1]


def set_zip_sizes(content: bytearray, size: int) -> bytearray:
    """Set the uncompressed size of the only entry in its local header and in the directory."""
    struct.pack_into("<I", content, 22, size)
    struct.pack_into("<I", content, content.index(b"PK\1\2") + 24, size)
    return content


def test_a_bomb_is_not_unpacked_beyond_the_limit_whatever_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 1 << 20)
    path = pack_zip(tmp_path / "bomb.zip", {"a.bmp": bytes(8 << 20)})
    assert "over the limit" in read_all(tmp_path)["bomb.zip/a.bmp"].error
    path.write_bytes(set_zip_sizes(bytearray(path.read_bytes()), 1000))
    photo = read_all(tmp_path)["bomb.zip/a.bmp"]
    assert photo.image is None and photo.error
    path.write_bytes(set_zip_sizes(bytearray(path.read_bytes()), 0xFFFFFFF0))
    assert "over the limit" in read_all(tmp_path)["bomb.zip/a.bmp"].error


def test_compression_without_a_limit_is_not_begun(tmp_path: Path) -> None:
    pack_zip(tmp_path / "a.zip", {"a.bmp": bytes(8 << 20)}, zipfile.ZIP_BZIP2)
    photo = read_all(tmp_path)["a.zip/a.bmp"]
    assert photo.error == "its compression (method 12) is not read: store or deflate it" and not photo.unread


def test_an_encrypted_entry_is_a_reason(tmp_path: Path) -> None:
    path = pack_zip(tmp_path / "a.zip", {"a.png": draw_bytes(), "b.png": draw_bytes()})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    photos = read_all(tmp_path)
    assert photos["a.zip/a.png"].error == "it is encrypted" and not photos["a.zip/a.png"].unread
    assert photos["a.zip/b.png"].error == ""


def test_a_damaged_entry_is_a_reason_of_its_own(tmp_path: Path) -> None:
    path = pack_stored(tmp_path / "a.zip", {"a.png": draw_bytes(), "b.png": draw_bytes()})
    content = bytearray(path.read_bytes())
    content[60] ^= 255
    path.write_bytes(content)
    photos = read_all(tmp_path)
    assert "CRC" in photos["a.zip/a.png"].error and photos["a.zip/b.png"].error == ""


def test_a_member_gone_since_the_listing_is_tried_again(tmp_path: Path) -> None:
    path = pack_zip(tmp_path / "a.zip", {"a.png": draw_bytes(), "b.png": draw_bytes()})
    source = open_source(tmp_path)
    assert len(source.find().files) == 2
    pack_zip(path, {"b.png": draw_bytes("BMP")})
    assert source.open("a.zip/b.png").read() == draw_bytes("BMP")
    with pytest.raises(FileNotFoundError):
        source.open("a.zip/a.png")


def test_threads_read_one_archive_at_once(tmp_path: Path) -> None:
    entries = {f"{number}.png": f"content {number}".encode() * 999 for number in range(64)}
    pack_zip(tmp_path / "a.zip", entries)
    pack_tar(tmp_path / "a.tar", entries)
    source, wrong = open_source(tmp_path), []

    def read_some(start: int) -> None:
        for number in range(start, 64, 4):
            for archive in ("a.zip", "a.tar"):
                with source.open(f"{archive}/{number}.png") as stream:
                    wrong.extend([number] if stream.read() != entries[f"{number}.png"] else [])

    threads = [threading.Thread(target=read_some, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_archive_is_listed_once_for_all_its_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_tar(tmp_path / "a.tar", {f"{number}.png": draw_bytes() for number in range(20)})
    listings: list[object] = []
    list_tar = archives._list_tar
    monkeypatch.setattr(archives, "_list_tar", lambda *given: (listings.append(given), list_tar(*given))[1])
    assert len(read_all(tmp_path)) == 20 and len(listings) == 1


def test_shards_are_indexed_in_place(tmp_path: Path, encoder: FakeEncoder) -> None:
    entries = {"000.png": draw_bytes(), "001.jpg": draw_bytes("JPEG"), "001.txt": b"a caption"}
    pack_tar(tmp_path / "shard-0001.tar", entries)
    build(tmp_path, encoder)
    assert open_table(tmp_path).paths == ["shard-0001.tar/000.png", "shard-0001.tar/001.jpg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".fwd2bot", "shard-0001.tar"]
