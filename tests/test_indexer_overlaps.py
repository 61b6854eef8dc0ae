"""Zips with overlapping entries are refused, and no others."""

import io
import zipfile
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import pytest

from indexer.sources import open_source
from tests.pictures import read_all
from tests.test_indexer_archives import draw_bytes


def share_offset(entries: list[zipfile.ZipInfo]) -> None:
    for number in range(3):
        entries.append(copy(entries[0]))
        entries[-1].filename = f"again{number}.png"


def quote_next(entries: list[zipfile.ZipInfo]) -> None:
    entries[0].compress_size = entries[1].header_offset + 1 - entries[0].header_offset - 30


@pytest.mark.parametrize("lay_over", [share_offset, quote_next])
def test_a_zip_whose_images_share_bytes_is_refused_in_one_line(
    tmp_path: Path, lay_over: Callable[[list[zipfile.ZipInfo]], None]
) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w") as archive:
        for name in ("a.png", "b.png", "c.txt"):
            archive.writestr(name, draw_bytes())
        lay_over(archive.filelist)
    found = open_source(tmp_path).find()
    assert not found.files
    reason = "images in it share bytes, as in a zip bomb or a damaged file: pack it anew"
    assert found.unreadable == [("bomb.zip", f"the archive cannot be read to its end ({reason})")]


class Pipe(io.RawIOBase):
    """A sink that cannot seek, so that a zip's sizes are written after its entries."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.content += data
        return len(memoryview(data))


@pytest.mark.parametrize("prefix", [b"", b"#!/bin/sh\n" * 99])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_images_side_by_side_are_read_however_they_are_packed(
    tmp_path: Path, method: int, prefix: bytes
) -> None:
    pipe, entries = Pipe(), {"a.png": b"", "b/": b"", "b/c.png": draw_bytes(), "d.png": b""}
    with zipfile.ZipFile(pipe, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        with archive.open("e.png", "w", force_zip64=True) as stream:
            stream.write(draw_bytes())
        archive.filelist.append(copy(archive.filelist[2]))  # listed twice, and read once
    (tmp_path / "a.zip").write_bytes(prefix + pipe.content)
    photos = read_all(tmp_path)
    assert [path for path, photo in photos.items() if not photo.error] == ["a.zip/b/c.png", "a.zip/e.png"]
    assert len(photos) == 4 and not open_source(tmp_path).find().unreadable
