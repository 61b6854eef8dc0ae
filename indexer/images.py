"""What passes from a source of images to the model: a file that was listed, and what was read of it.

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
# Every worker may hold as much: a file is read whole.
MAX_FILE_BYTES = 512 << 20
LONGEST_NAME = 1 << 12  # bytes, stored: below an archive or a URL, where no file system keeps a name short
LONGEST_SHOWN = 200  # letters of a name that is refused
_LARGEST = 2**63 - 1
_LONGEST_REASON = 300


class ImageFile(NamedTuple):
    """A file as its source lists it; `path` is relative to the root, posix, in stored form (see paths.py).

    size: in bytes, -1 where a URL does not tell. mtime_ns: nanoseconds since 1970; a member of an archive has
    those of the archive; for URLs see remote.py.
    """

    path: str
    size: int
    mtime_ns: int


class Photo(NamedTuple):
    """A file that was read: `image` is RGB and upright, or None with the reason in `error`.

    width and height are those of the upright original; zero where the header could not be read. `unread` says
    that the bytes are not to blame and the file is to be tried again: it could not be opened, or its format
    needs a package that is not installed. `known` says that it was not decoded, as its digest is known.
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
    """Which names of a listing count: not those that begin with a dot, nor those that a glob excludes."""

    def __init__(self, exclude: Sequence[str]) -> None:
        self._excluded = re.compile("|".join(fnmatch.translate(pattern) for pattern in exclude) or r"(?!)")

    def takes(self, path: str) -> bool:
        """Whether a file or folder counts, given that the folders above it do; `path` is below the root."""
        name = path.rpartition("/")[2]
        return not (name.startswith(".") or self._excluded.match(path) or self._excluded.match(name))

    def takes_below(self, folder: str, path: str) -> bool:
        """Whether a file counts whose `path` below `folder` was listed in one go."""
        ends = [place for place, letter in enumerate(path) if letter == "/"] + [len(path)]
        return all(self.takes(f"{folder}/{path[:end]}") for end in ends)


def make_image_file(path: str, size: int, mtime_ns: int) -> ImageFile:
    """List a file by its own path; a number that no column could hold becomes the largest that one can."""
    return ImageFile(escape_path(path), min(size, _LARGEST), max(-_LARGEST, min(mtime_ns, _LARGEST)))


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return name.lower().endswith(EXTENSIONS)


def is_too_long(name: str) -> bool:
    """Whether a name, as it would be stored, could make a row longer than any that is read (see parts.py)."""
    return len(escape_path(name).encode()) > LONGEST_NAME


def describe_error(error: Exception) -> str:
    """Say in one line of printable characters, and not a long one, what is wrong with a file."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = "".join(letter if letter.isprintable() else " " for letter in str(error)).split()
    return " ".join(words)[:_LONGEST_REASON] or type(error).__name__


def describe_size(size: int) -> str:
    """Say that a file is larger than any that is read."""
    return f"{size / 2**20:,.0f} MiB are over the limit of {MAX_FILE_BYTES >> 20} MiB for one file"
