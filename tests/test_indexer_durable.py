"""A replaced file survives a power failure: what is flushed to disk, and in which order."""

import os
from pathlib import Path

import pytest

from indexer.durable import replace_durably


def test_bytes_are_flushed_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = tmp_path / "file", b"new"
    path.write_bytes(b"old")
    folder, fsync = tmp_path.stat().st_ino, os.fsync
    flushed: list[tuple[str, bytes]] = []

    def note(descriptor: int) -> None:
        status = os.fstat(descriptor)
        what = "folder" if status.st_ino == folder else f"file of {status.st_size} bytes"
        flushed.append((what, path.read_bytes()[:3]))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with replace_durably(path) as stream:
        stream.write(content)
    assert flushed == [(f"file of {len(content)} bytes", b"old"), ("folder", b"new")]
    assert path.read_bytes() == content
