"""The images in a folder on disk, including those in its archives."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from encoders.base import NothingToIndex

from .archives import ARCHIVE_EXTENSIONS, find_archive, list_archive, open_member, read_all
from .file_list import FileCollector, FoundImages
from .images import Selection, describe_error, is_image_name, make_image_file
from .observer import SILENT, Observer
from .paths import escape_path, show_path, unescape_path

# Errors of `stat` for a file that is gone since the listing, and for a link that is cyclic or broken.
_IS_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class FolderSource:
    """A folder as a Source; an archive in it counts as a folder, so paths continue below its name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(
        self, exclude: Sequence[str] = (), follow_links: bool = False, observer: Observer = SILENT
    ) -> FoundImages:
        """See Source. Each folder is visited once, by its own path rather than by a link to it."""
        if not self.root.is_dir():
            raise NothingToIndex(f"{self.root} is not a folder: name one that holds images")
        return _FolderWalk(self.root, Selection(exclude), follow_links, FileCollector(observer)).find()

    def open(self, path: str) -> BinaryIO:
        """See Source."""
        name = unescape_path(path)
        member = find_archive(self.root, name)
        if member:
            return open_member(*member)
        with (self.root / name).open("rb") as stream:
            return read_all(stream, os.fstat(stream.fileno()).st_size)


class _FolderWalk:
    """One listing in progress: what was found, and the folders and links still to visit."""

    def __init__(self, root: Path, selection: Selection, follow_links: bool, files: FileCollector) -> None:
        self.root = root
        self.selection = selection
        self.follow_links = follow_links
        self.files = files
        self.unreadable, self.refused = list[tuple[str, str]](), list[tuple[str, str]]()
        self.folders, self.links = [""], list[str]()
        self._seen = set[tuple[int, int]]()
        self._real_root = os.path.realpath(root)
        self._leading_out: list[str] = []

    def find(self) -> FoundImages:
        while self.folders or self.links:
            folder = self.folders.pop() if self.folders else self.links.pop(0)
            try:
                if self._visit_once(folder):
                    self._list_folder(folder)
            except OSError as error:
                self.unreadable.append((escape_path(folder), describe_error(error)))
        self._report_links()
        return FoundImages(self.files.sort(), self.unreadable, self.refused)

    def _visit_once(self, folder: str) -> bool:
        status = (self.root / folder).stat()
        identity = (status.st_dev, status.st_ino)
        if identity in self._seen:
            return False
        self._seen.add(identity)
        return True

    def _list_folder(self, folder: str) -> None:
        with os.scandir(self.root / folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = f"{folder}/{entry.name}" if folder else entry.name
                if not self.selection.takes(path):
                    continue
                try:
                    self._sort_entry(entry, path)
                except OSError as error:
                    self._report_entry(entry, path, error)

    def _sort_entry(self, entry: os.DirEntry[str], path: str) -> None:
        """Treat an entry as a folder, an image, an archive, or nothing of interest."""
        is_archive = entry.name.lower().endswith(ARCHIVE_EXTENSIONS)
        if entry.is_dir():
            if not self._leads_out(entry, path):
                (self.links if entry.is_symlink() else self.folders).append(path)
        elif (is_archive or is_image_name(entry.name)) and entry.is_file():
            if self._leads_out(entry, path):
                return
            status = entry.stat()
            if is_archive:
                self._list_archive(path, status.st_mtime_ns)
            else:
                self.files.append(make_image_file(path, status.st_size, status.st_mtime_ns))

    def _report_entry(self, entry: os.DirEntry[str], path: str, error: OSError) -> None:
        """Note an entry that exists but cannot be examined: what the index knows of it remains valid."""
        if error.errno not in _IS_GONE and not self._leads_out(entry, path):
            self.unreadable.append((escape_path(path), describe_error(error)))

    def _list_archive(self, path: str, mtime_ns: int) -> None:
        stored = escape_path(path)
        try:
            listing = list_archive(self.root / path)
        except OSError as error:
            self.unreadable.append((stored, describe_error(error)))
            return
        self.files.extend(
            make_image_file(f"{path}/{name}", member.size, mtime_ns)
            for name, member in listing.members.items()
            if self.selection.takes_below(path, name)
        )
        if listing.damage:
            reason = f"the archive cannot be read to its end ({listing.damage})"
            self.unreadable.append((stored, reason))
        if listing.refused:
            more = f" and {len(listing.refused) - 1:,} more" if len(listing.refused) > 1 else ""
            first = show_path(listing.refused[0])
            what = "links, devices or names that lead elsewhere or are too long"
            reason = f"left out of it: {first}{more}, as {what}"
            self.refused.append((stored, reason))

    def _leads_out(self, entry: os.DirEntry[str], path: str) -> bool:
        """Whether an entry is a link out of the root that must not be followed; if so, it is noted."""
        if self.follow_links or not entry.is_symlink():
            return False
        target = os.path.realpath(entry.path)
        inside = target == self._real_root or target.startswith(self._real_root.rstrip(os.sep) + os.sep)
        if not inside:
            self._leading_out.append(escape_path(path))
        return not inside

    def _report_links(self) -> None:
        if self._leading_out:
            others = len(self._leading_out) - 1
            more = f", nor are {others:,} more" if others else ""
            reason = f"the link leads out of the folder and is not followed{more} (--follow-links)"
            self.refused.append((self._leading_out[0], reason))
