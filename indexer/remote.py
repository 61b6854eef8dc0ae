"""The images below an fsspec URL (s3://, gs://, memory:// ...), each read in one request."""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from io import BytesIO
from typing import Any, BinaryIO
from urllib.parse import unquote

import fsspec
import xxhash

from encoders.base import MissingDependency, NothingToIndex

from .archives import ARCHIVE_EXTENSIONS
from .file_list import FileCollector, FoundImages
from .images import (
    LONGEST_NAME,
    LONGEST_SHOWN,
    MAX_FILE_BYTES,
    ImageFile,
    Selection,
    describe_error,
    describe_size,
    is_image_name,
    is_too_long,
    make_image_file,
)
from .observer import SILENT, Observer
from .paths import escape_path, unescape_path

_Entry = Mapping[str, Any]  # one entry of a listing

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
# Names in fsspec file systems for the time of the last write, and for a tag that changes with the content.
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")
_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "crc32c", "checksum", "Last-Modified")
_DEEPEST = 40  # nested folders; a web server lists them without end if a link leads back up
_REQUESTS = 16  # at a time, where a listing has names only


class UrlSource:
    """The objects below a URL (see sources.py). There are no links.

    Archives among them are not read: listing one would take a request for every few bytes of it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._files, root = _open_file_system(url)
        self._root = root.rstrip("/")

    def find(
        self, exclude: Sequence[str] = (), follow_links: bool = False, observer: Observer = SILENT
    ) -> FoundImages:
        """See Source."""
        selection, files, folders = Selection(exclude), FileCollector(observer), [""]
        unreadable, archives, long = list[tuple[str, str]](), list[str](), list[str]()
        while folders:
            folder = folders.pop()
            try:
                entries = self._list_folder(folder)
            except Exception as error:  # each file system raises its own
                reason = describe_error(error)
                if not folder:
                    raise NothingToIndex(
                        f"{self.url} cannot be listed ({reason}): check the URL and your credentials"
                    ) from error
                unreadable.append((escape_path(folder), reason))
                continue
            images = dict[str, _Entry]()
            for path, entry in entries.items():
                if not selection.takes(path):
                    continue
                if entry["type"] == "directory":
                    folders.append(path)
                elif is_image_name(path) and is_too_long(path):
                    long.append(path)
                elif is_image_name(path):
                    images[path] = entry
                elif path.lower().endswith(ARCHIVE_EXTENSIONS):
                    archives.append(path)
            files.extend(self._list_files(images))
        refused = _refuse(archives, "an archive behind a URL is not read", "unpack it there")
        refused += _refuse(long, f"a path of over {LONGEST_NAME:,} bytes is not read", "rename it there")
        return FoundImages(files.sort(), unreadable, refused)

    def open(self, path: str) -> BinaryIO:
        """See Source."""
        try:
            data = self._files.cat_file(self._locate(unescape_path(path)), start=0, end=MAX_FILE_BYTES + 1)
        except OSError:
            raise
        except Exception as error:  # if a server does not answer, the file is not at fault
            raise OSError(describe_error(error)) from error
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(describe_size(len(data)))
        return BytesIO(data)

    def _locate(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root or "/"

    def _list_folder(self, folder: str) -> dict[str, _Entry]:
        """The direct entries of a folder, by path below the root; other links of a web page are dropped."""
        if folder.count("/") == _DEEPEST:
            raise OSError(f"it lies below {_DEEPEST} folders, as if a link led back up")
        start, listed = f"{folder}/" if folder else "", dict[str, _Entry]()
        for entry in self._files.ls(self._locate(folder), detail=True):
            path = entry["name"].removeprefix(self._root).strip("/")
            # Some stores list a marker object for the folder itself, which is dropped too.
            if path.startswith(start) and _is_name(path.removeprefix(start)):
                listed[path] = entry
        return listed

    def _list_files(self, entries: dict[str, _Entry]) -> Iterator[ImageFile]:
        """List files; where a listing has names only, as over HTTP, request their sizes and times."""
        bare = [path for path, entry in entries.items() if entry["size"] is None]
        with ThreadPoolExecutor(_REQUESTS) as pool:
            asked = dict(zip(bare, pool.map(self._ask, (entries[path] for path in bare)), strict=True))
        for path, entry in (entries | asked).items():
            size = -1 if entry["size"] is None else int(entry["size"])
            yield make_image_file(path, size, read_stamp(entry))

    def _ask(self, entry: _Entry) -> _Entry:
        with suppress(Exception):  # reading the file will say why
            entry = self._files.info(entry["name"])
        return entry


def _is_name(path: str) -> bool:
    """Whether this is a valid file name; the HTTP client also takes `%2E%2E` for the parent folder."""
    return not {"/", "\0"}.intersection(path) and unquote(path) not in ("", ".", "..")


def _refuse(paths: Sequence[str], reason: str, remedy: str) -> list[tuple[str, str]]:
    """One (path, reason) pair for all of these paths."""
    if not paths:
        return []
    more = f", nor are {len(paths) - 1:,} more" if len(paths) > 1 else ""
    return [(escape_path(min(paths))[:LONGEST_SHOWN], f"{reason}{more}: {remedy}")]


def read_stamp(entry: _Entry) -> int:
    """The time of an object's last write in nanoseconds since 1970, to show whether it has changed.

    Stores count in seconds. If there is a content tag too (an ETag), its hash replaces the digits below the
    second, so that a change of either changes the stamp.
    """
    moment = _read_time(next((entry[name] for name in _TIMES if entry.get(name)), 0))
    mark = next((str(entry[name]) for name in _MARKS if entry.get(name)), "")
    if not mark:
        return int(moment * 1e9)
    return int(moment) * 10**9 + xxhash.xxh3_64_intdigest(mark.encode()) % 10**9


def _read_time(value: object) -> float:
    """Seconds since 1970, 0 if the value is not a time."""
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        seconds = value.timestamp() if isinstance(value, datetime) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0


def _open_file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL, and the root path in it."""
    protocol = url.partition("://")[0]
    try:
        # No cache of listings: a run lists each folder once, and a later run must see what is new.
        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = f'pip install "fwd2bot[{extra}]"' if extra else describe_error(error)
        raise MissingDependency(f"{url} needs a package that is not installed: {remedy}") from error
    except Exception as error:
        raise NothingToIndex(
            f"{url} cannot be opened ({describe_error(error)}): name a folder, or a URL such as s3://bucket/photos"
        ) from error
    return files, root
