"""Where images come from: a folder and the archives in it (folder.py), or a URL of fsspec (remote.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from encoders.base import NothingToIndex

from .file_list import FoundImages
from .folder import FolderSource
from .manifest import Root, parse_root


class Source(Protocol):
    """Where images come from. Paths are relative to it, in stored form."""

    def find(self, exclude: Sequence[str] = (), follow_links: bool = False) -> FoundImages:
        """List the image files, sorted by path; NothingToIndex where there is no such place.

        Names that begin with a dot are left out. `exclude` globs are tried on the path below the root and on
        each name. Links that lead out of the root are refused unless `follow_links`.
        """

    def open(self, path: str) -> BinaryIO:
        """Open one file for reading, seekable; OSError where it cannot be read, anything if it is damaged."""


def open_source(root: Root) -> Source:
    """Turn a folder, or a URL with its `://`, into the source of its images; nothing is read yet."""
    root = parse_root(root)
    if isinstance(root, Path):
        return FolderSource(root)
    from .remote import UrlSource  # half a second of imports that a folder does not need

    return UrlSource(root)


def name_root(typed: Root) -> Root:
    """The folder or URL that somebody named: an empty word, as an unset variable leaves it, names none."""
    if isinstance(typed, str) and not typed.removeprefix("file://"):
        raise NothingToIndex("the name of the folder is empty: name one, or `.` for the current one")
    return parse_root(typed)
