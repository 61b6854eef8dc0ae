"""Where images come from: a folder and the archives in it (folder.py), or an fsspec URL (remote.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from .file_list import FoundImages
from .folder import FolderSource
from .observer import SILENT, Observer
from .roots import Root, parse_root


class Source(Protocol):
    """A place that images come from. Paths are relative to its root, in stored form."""

    def find(
        self, exclude: Sequence[str] = (), follow_links: bool = False, observer: Observer = SILENT
    ) -> FoundImages:
        """List the image files, sorted by path; NothingToIndex if there is no such folder or URL.

        Names that begin with a dot are left out. `exclude` globs are matched against the path below the root
        and against each name. Links that lead out of the root are refused unless `follow_links`.
        The observer is told from time to time how many more files were found.
        """

    def open(self, path: str) -> BinaryIO:
        """Open one file as a seekable stream; OSError if it cannot be read, any exception if damaged."""


def open_source(root: Root) -> Source:
    """The source for a folder, or for a URL with its `://`; nothing is read yet."""
    root = parse_root(root)
    if isinstance(root, Path):
        return FolderSource(root)
    from .remote import UrlSource  # half a second of imports that a folder does not need

    return UrlSource(root)
