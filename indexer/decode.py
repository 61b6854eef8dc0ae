"""Read one file: its digest, its metadata, and its pixels, scaled down towards what the model reads.

Nothing here stops a run: a file that cannot be decoded becomes a Photo with the reason in `error`.
"""

import math
import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import BinaryIO

from PIL import Image

from encoders.base import MissingDependency

from .durable import digest_stream
from .images import (
    HEIF_EXTENSIONS,
    MAX_FILE_BYTES,
    RAW_EXTENSIONS,
    ImageFile,
    Photo,
    describe_error,
    describe_size,
)
from .metadata import NO_METADATA, Metadata, is_orientation, read_metadata
from .pixels import decode_upright
from .raw import measure_raw, open_raw, open_view
from .sources import Source

# Given explicitly: by default Pillow goes by content alone and would pass an EPS named .jpg to Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
DEFAULT_MAX_MEGAPIXELS = 200.0
# Ends the reason to refuse an image: how the command takes it all the same.
PIXELS_OPTION = " (--max-megapixels)"
LONGEST_SHAPE = 100  # aspect ratio: a model that crops enlarges the shorter side first, to gigabytes


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Turn off Pillow's pixel limit, as `read_photo` has its own, and silence its warnings in all threads."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)\b")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def read_photo(
    source: Source, file: ImageFile, image_size: int, max_megapixels: float, known: Container[str] = ()
) -> Photo:
    """Open, digest and decode one file, whatever is in it; if its digest is `known`, it is not decoded."""
    if file.size == 0:
        return Photo(file, error="the file is empty")
    if file.size > MAX_FILE_BYTES:
        return Photo(file, error=describe_size(file.size))
    try:
        require_decoder(file.path)
        with source.open(file.path) as stream:
            photo = Photo(file, digest=digest_stream(stream))
            if photo.digest in known:
                return photo._replace(known=True)
            stream.seek(0)
            return decode_photo(photo, stream, image_size, max_megapixels)
    except (OSError, MissingDependency, MemoryError) as error:
        return Photo(file, error=describe_error(error), unread=True)
    except Exception as error:  # an archive member that cannot be unpacked
        return Photo(file, error=describe_error(error))


def decode_photo(photo: Photo, stream: BinaryIO, image_size: int, max_megapixels: float) -> Photo:
    """Give a photo the pixels and metadata in a stream, or the reason why it has none."""
    decode = _decode_raw if photo.file.path.lower().endswith(RAW_EXTENSIONS) else _decode_picture
    try:
        return decode(photo, stream, image_size, max_megapixels)
    except (MissingDependency, MemoryError) as error:  # another day there may be more memory
        return photo._replace(error=describe_error(error), unread=True)
    except Exception as error:  # decoders raise anything: struct.error, SyntaxError ...
        return photo._replace(error=describe_error(error))


def open_picture(stream: BinaryIO) -> Image.Image:
    """Open an image of any format but RAW; MissingDependency for HEIC if its extra is not installed."""
    head = stream.read(64)
    stream.seek(0)
    if not _is_heif(head):
        return Image.open(stream, formats=FORMATS)
    require_decoder(".heic")
    _register_heif()
    return Image.open(stream, formats=("HEIF",))


def require_decoder(path: str) -> None:
    """Raise MissingDependency if files of this name need an extra that is not installed."""
    for extensions, package, extra in (
        (HEIF_EXTENSIONS, "pillow_heif", "heic"),
        (RAW_EXTENSIONS, "rawpy", "raw"),
    ):
        if path.lower().endswith(extensions) and find_spec(package) is None:
            raise MissingDependency(f'it needs one more package: pip install "fwd2bot[{extra}]"')


def refuse_shape(width: int, height: int, max_megapixels: float) -> str:
    """Why an image of this size is not decoded, or ""."""
    pixels = width * height
    if pixels > max_megapixels * 1e6:
        megapixels = math.ceil(pixels / 1e4) / 100  # rounded up, or it could seem to be within the limit
        return f"{megapixels:,g} megapixels are over the limit of {max_megapixels:,g}{PIXELS_OPTION}"
    if max(width, height) > LONGEST_SHAPE * min(width, height):
        return f"{width} x {height} pixels are more than {LONGEST_SHAPE} times as long as wide"
    return ""


def _decode_picture(photo: Photo, stream: BinaryIO, image_size: int, max_megapixels: float) -> Photo:
    with open_picture(stream) as image:
        width, height = image.size
        reason = refuse_shape(width, height, max_megapixels)
        if reason:
            return photo._replace(width=width, height=height, error=reason)
        metadata = _read_metadata(image)  # first: loading a TIFF drops its file and its orientation
        small, swapped = decode_upright(image, image_size)
        width, height = (height, width) if swapped else (width, height)
        return photo._replace(width=width, height=height, image=small, metadata=metadata)


def _decode_raw(photo: Photo, stream: BinaryIO, image_size: int, max_megapixels: float) -> Photo:
    with open_raw(stream) as raw:
        width, height = measure_raw(raw)
        reason = refuse_shape(width, height, max_megapixels)
        if reason:
            return photo._replace(width=width, height=height, error=reason)
        with open_view(raw, image_size) as image:
            metadata = _read_raw_metadata(stream) or _read_metadata(image)
            small, _ = decode_upright(image, image_size)
        return photo._replace(width=width, height=height, image=small, metadata=metadata)


def _read_metadata(image: Image.Image) -> Metadata:
    try:
        exif = image.getexif()
        metadata = read_metadata(exif) if exif else NO_METADATA
    except Exception:  # broken EXIF is no reason to lose the photo
        return NO_METADATA
    if image.format != "HEIF":  # in other formats, `original_orientation` may be any text
        return metadata
    turned = image.info.get("original_orientation")  # pillow_heif turns the image itself and notes it here
    return metadata._replace(orientation=turned) if is_orientation(turned) else metadata


def _read_raw_metadata(stream: BinaryIO) -> Metadata | None:
    """Read the EXIF of a RAW file with the structure of a TIFF, as most have; None for the others."""
    exif = Image.Exif()
    stream.seek(0)
    try:
        exif.load_from_fp(stream)
    except Exception:  # another kind of file, or a broken one
        return None
    return read_metadata(exif)


def _is_heif(head: bytes) -> bool:
    """Whether a file that begins with these bytes is HEIC; mif1 and msf1 may also be the brand of an AVIF."""
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    return brand in HEIF_BRANDS or (brand in (b"mif1", b"msf1") and b"avif" not in head)


@cache
def _register_heif() -> None:
    import pillow_heif

    # The indexer has its own threads; depth maps and auxiliary images are not used.
    pillow_heif.register_heif_opener(decode_threads=1, depth_images=False, aux_images=False)
