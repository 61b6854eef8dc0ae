"""What passes from a source to the model: a file as listed, and the photo read from it.

sources.py finds and opens files, decode.py reads them.
"""

import fnmatch
import re
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from .metadata import NO_METADATA, Metadata
from .paths import escape_path

HEIF_EXTENSIONS = (".heic", ".heif", ".hif")
# fmt: off
RAW_EXTENSIONS = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)
EXTENSIONS = (
    ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff",
    ".webp", *HEIF_EXTENSIONS, *RAW_EXTENSIONS,
)
# fmt: on
# Files are read whole, so every worker may hold this much.
MAX_FILE_BYTES = 512 << 20
LONGEST_NAME = 1 << 12  # bytes in stored form; in an archive or below a URL, no file system limits a name
LONGEST_SHOWN = 200  # characters of a refused name
_LARGEST = 2**63 - 1
_LONGEST_REASON = 300


class ImageFile(NamedTuple):
    """A file as its source lists it; `path` is relative to the root, posix, in stored form (see paths.py).

    size: bytes, -1 if a URL does not report it. mtime_ns: nanoseconds since 1970; an archive member has that
    of its archive; for URLs see remote.py.
    """

    path: str
    size: int
    mtime_ns: int


class Photo(NamedTuple):
    """A file that was read: `image` is RGB and upright, or None, with the reason in `error` unless `known`.

    width and height are those of the upright original, 0 if it could not be decoded; if they are the reason
    in `error`, they are those of its header, not turned. `unread`: the bytes are not at fault and the file is
    to be tried again: it could not be opened, took too long, needed more memory than there was, or its format
    needs a package that is not installed. `known`: its digest is known, so it was not decoded.
    """

    file: ImageFile
    digest: str = ""
    width: int = 0
    height: int = 0
    image: Image.Image | None = None
    error: str = ""
    unread: bool = False
    known: bool = False
    metadata: Metadata = NO_METADATA


class Selection:
    """Decides which names in a listing count: not those that begin with a dot or match an exclude glob."""

    def __init__(self, exclude: Sequence[str]) -> None:
        globs = (pattern.removeprefix("./").rstrip("/") for pattern in exclude)  # as a shell completes a name
        self._excluded = re.compile("|".join(map(fnmatch.translate, globs)) or r"(?!)")

    def takes(self, path: str) -> bool:
        """Whether a file or folder counts if the folders above it do; `path` is relative to the root."""
        name = path.rpartition("/")[2]
        return not (name.startswith(".") or self._excluded.match(path) or self._excluded.match(name))

    def takes_below(self, folder: str, path: str) -> bool:
        """Whether the file at `path` below `folder`, and every folder on the way to it, counts."""
        ends = [place for place, letter in enumerate(path) if letter == "/"] + [len(path)]
        return all(self.takes(f"{folder}/{path[:end]}") for end in ends)


def make_image_file(path: str, size: int, mtime_ns: int) -> ImageFile:
    """Make an ImageFile from an unescaped path, with numbers clipped to what a column can hold."""
    return ImageFile(escape_path(path), min(size, _LARGEST), max(-_LARGEST, min(mtime_ns, _LARGEST)))


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return name.lower().endswith(EXTENSIONS)


def is_too_long(name: str) -> bool:
    """Whether a name, in stored form, is so long that its row could exceed LONGEST_ROW of parts.py."""
    return len(escape_path(name).encode()) > LONGEST_NAME


def describe_error(error: Exception) -> str:
    """Say in one short line of printable characters what is wrong with a file."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, MemoryError):
        return "no memory left (MemoryError)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = "".join(letter if letter.isprintable() else " " for letter in str(error)).split()
    return " ".join(words)[:_LONGEST_REASON] or type(error).__name__


def describe_size(size: int) -> str:
    """Say that a file is over the size limit."""
    return f"{size / 2**20:,.0f} MiB are over the limit of {MAX_FILE_BYTES >> 20} MiB for one file"
