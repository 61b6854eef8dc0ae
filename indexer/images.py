"""Images on disk: finding them, and decoding one to no more than the model reads.

Nothing here stops a run. A folder that cannot be listed is reported, a file that cannot be decoded becomes a
reason.
"""

import fnmatch
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from encoders.base import NothingToIndex

from .durable import digest_stream
from .paths import escape_path, unescape_path

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif")
# Said outright: by default Pillow looks at the bytes alone and would hand an EPS called .jpg to Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF")
DEFAULT_MAX_MEGAPIXELS = 200.0
LONGEST_SIDE = 16  # in units of image_size: a 100 x 1,000,000 strip must not fill the memory either


class ImageFile(NamedTuple):
    """A file as the folder lists it; `path` is relative to the root, posix, in stored form (see paths.py)."""

    path: str
    size: int
    mtime_ns: int


class FoundImages(NamedTuple):
    """Image files in order of their paths, and the folders that could not be listed (path, reason)."""

    files: list[ImageFile]
    unreadable: list[tuple[str, str]]


class Photo(NamedTuple):
    """A file that was read: `image` is RGB and upright, or None with the reason in `error`.

    width and height are those of the upright original; zero where the header could not be read. `unread` says
    that the file could not even be opened, so that its bytes are not to blame.
    """

    file: ImageFile
    digest: str = ""
    width: int = 0
    height: int = 0
    image: Image.Image | None = None
    error: str = ""
    unread: bool = False


def find_images(root: Path, exclude: Sequence[str] = ()) -> FoundImages:
    """List the image files below root, sorted by path.

    Names that begin with a dot are left out. `exclude` globs are tried on the path below the root and on each
    name. Links are followed, each folder is visited once, and by its own path before any link to it.
    """
    if not root.is_dir():
        raise NothingToIndex(f"{root} is not a folder: name one that holds images")
    excluded = re.compile("|".join(fnmatch.translate(pattern) for pattern in exclude) or r"(?!)")
    found = FoundImages([], [])
    folders, links, seen = [""], list[str](), set[tuple[int, int]]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            if _visit_once(root / folder, seen):
                _list_folder(root, folder, excluded, found, folders, links)
        except OSError as error:
            found.unreadable.append((escape_path(folder), describe_error(error)))
    found.files.sort()
    return found


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


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Leave the limit on pixels to `read_photo`, and silence Pillow's warnings in all threads."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def read_photo(root: Path, file: ImageFile, image_size: int, max_megapixels: float) -> Photo:
    """Read, digest and decode one file, whatever is in it."""
    try:
        with (root / unescape_path(file.path)).open("rb") as stream:
            photo = Photo(file, digest=digest_stream(stream))
            stream.seek(0)
            return _decode_stream(photo, stream, image_size, max_megapixels)
    except OSError as error:
        return Photo(file, error=describe_error(error), unread=True)


def _decode_stream(photo: Photo, stream: BinaryIO, image_size: int, max_megapixels: float) -> Photo:
    if photo.file.size == 0:
        return photo._replace(error="the file is empty")
    try:
        with Image.open(stream, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_megapixels * 1e6:
                reason = f"{width * height / 1e6:,.0f} megapixels are over the limit of {max_megapixels:,g}"
                return photo._replace(width=width, height=height, error=f"{reason} (--max-megapixels)")
            small, turned = _decode_upright(image, image_size)
    except (
        Exception
    ) as error:  # decoders raise anything on bad bytes: struct.error, SyntaxError, MemoryError ...
        return photo._replace(error=describe_error(error))
    width, height = (height, width) if turned else (width, height)
    return photo._replace(width=width, height=height, image=small)


def decode_image(path: Path, image_size: int) -> Image.Image:
    """Decode one file just as the index does: RGB, upright, shrunk towards image_size.

    Raises what Pillow raises.
    """
    with Image.open(path, formats=FORMATS) as image:
        return _decode_upright(image, image_size)[0]


def _decode_upright(image: Image.Image, image_size: int) -> tuple[Image.Image, bool]:
    """The image as RGB, upright and small; and whether turning it upright swapped its sides."""
    image.draft(None, (image_size, image_size))  # JPEG only: decodes straight to a half, quarter or eighth
    image.load()
    turned = _turn_upright(image)
    return _shrink(_flatten_to_rgb(image), image_size), turned


def _turn_upright(image: Image.Image) -> bool:
    """Apply the EXIF orientation in place; true where width and height changed places."""
    try:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # broken EXIF is no reason to lose the photo
        return False
    return turned


def _flatten_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scale_to_bytes(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _scale_to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale the full range to 0..255: Pillow's own conversion clips everything above 255 to white."""
    is_float = np.issubdtype(values.dtype, np.floating)
    values = np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
    peak = float(values.max(initial=0.0))
    usual = (1.0, 255.0, 65535.0) if is_float else (65535.0,)
    top = next((limit for limit in usual if peak <= limit), peak)
    return np.clip(values * (255.0 / top) + 0.5, 0, 255).astype(np.uint8)


def _shrink(image: Image.Image, image_size: int) -> Image.Image:
    factor = min(image.size) // image_size
    if factor > 1:
        image = image.reduce(factor)
    if max(image.size) > LONGEST_SIDE * image_size:
        image.thumbnail((LONGEST_SIDE * image_size, LONGEST_SIDE * image_size))
    return image


def describe_error(error: Exception) -> str:
    """Say in one line what is wrong with a file."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
