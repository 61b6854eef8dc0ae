"""What passes from a source of images to the model: a file that was listed, and what was read of it.

sources.py and its neighbours find and open files, decode.py reads them.
"""

from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from .metadata import NO_METADATA, Metadata

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif")


class ImageFile(NamedTuple):
    """A file as its source lists it; `path` is relative to the root, posix, in stored form (see paths.py)."""

    path: str
    size: int
    mtime_ns: int


class FoundImages(NamedTuple):
    """What a source lists: image files in order of their paths; the rest are pairs of path and reason.

    unreadable: folders and archives that could not be listed, so that nothing is known of what they hold.
    refused: what was seen and left out on purpose.
    """

    files: list[ImageFile]
    unreadable: list[tuple[str, str]]
    refused: list[tuple[str, str]]


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


def describe_error(error: Exception) -> str:
    """Say in one line what is wrong with a file."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
