"""Where images come from, and finding them there. Nothing in one file or folder stops a run."""

import fnmatch
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from encoders.base import NothingToIndex

from .images import EXTENSIONS, FoundImages, ImageFile, describe_error
from .paths import escape_path, unescape_path


class Source(Protocol):
    """Where images come from: a folder, or a URL of fsspec. Paths are relative to it, in stored form."""

    def find(self, exclude: Sequence[str] = (), follow_links: bool = False) -> FoundImages:
        """List the image files, sorted by path; NothingToIndex where there is no such place.

        Names that begin with a dot are left out. `exclude` globs are tried on the path below the root and on
        each name. Links that lead out of the root are refused unless `follow_links`.
        """

    def open(self, path: str) -> BinaryIO:
        """Open one file for reading, seekable; OSError where it cannot be read."""


def open_source(root: Path | str) -> Source:
    """Turn a folder, or a URL with its `://`, into the source of its images."""
    return FolderSource(Path(root))


class FolderSource:
    """The images of a folder, where each folder is visited once, by its own path before any link to it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, exclude: Sequence[str] = (), follow_links: bool = False) -> FoundImages:
        """See Source."""
        if not self.root.is_dir():
            raise NothingToIndex(f"{self.root} is not a folder: name one that holds images")
        excluded = re.compile("|".join(fnmatch.translate(pattern) for pattern in exclude) or r"(?!)")
        found = FoundImages([], [], [])
        folders, links, seen = [""], list[str](), set[tuple[int, int]]()
        while folders or links:
            folder = folders.pop() if folders else links.pop(0)
            try:
                if _visit_once(self.root / folder, seen):
                    _list_folder(self.root, folder, excluded, found, folders, links)
            except OSError as error:
                found.unreadable.append((escape_path(folder), describe_error(error)))
        found.files.sort()
        return found

    def open(self, path: str) -> BinaryIO:
        """See Source."""
        return (self.root / unescape_path(path)).open("rb")


def _visit_once(folder: Path, seen: set[tuple[int, int]]) -> bool:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return False
    seen.add(identity)
    return True


def _list_folder(
    root: Path,
    folder: str,
    excluded: re.Pattern[str],
    found: FoundImages,
    folders: list[str],
    links: list[str],
) -> None:
    """Sort one folder's entries into image files, folders to visit, and links to visit after all folders."""
    with os.scandir(root / folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith(".") or excluded.match(path) or excluded.match(entry.name):
                continue
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(path)
                elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                    status = entry.stat()
                    found.files.append(ImageFile(escape_path(path), status.st_size, status.st_mtime_ns))
            except OSError:  # a link that leads in circles, or a file gone since the listing: no image
                continue
