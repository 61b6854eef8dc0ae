"""One file to its digest, its metadata, and no more pixels than the model reads.

Nothing here stops a run: a file that cannot be decoded becomes a reason.
"""

import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .durable import digest_stream
from .images import ImageFile, Photo, describe_error
from .metadata import NO_METADATA, Metadata, read_metadata
from .sources import Source

# Said outright: by default Pillow looks at the bytes alone and would hand an EPS called .jpg to Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF")
DEFAULT_MAX_MEGAPIXELS = 200.0
LONGEST_SIDE = 16  # in units of image_size: a 100 x 1,000,000 strip must not fill the memory either


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


def read_photo(
    source: Source, file: ImageFile, image_size: int, max_megapixels: float, known: Container[str] = ()
) -> Photo:
    """Open, digest and decode one file, whatever is in it; one whose digest is `known` is not decoded."""
    try:
        with source.open(file.path) as stream:
            photo = Photo(file, digest=digest_stream(stream))
            if photo.digest in known:
                return photo._replace(known=True)
            stream.seek(0)
            return decode_photo(photo, stream, image_size, max_megapixels)
    except OSError as error:
        return Photo(file, error=describe_error(error), unread=True)


def decode_photo(photo: Photo, stream: BinaryIO, image_size: int, max_megapixels: float) -> Photo:
    """Give a photo the pixels and the metadata in a stream, or the reason why it has none."""
    if photo.file.size == 0:
        return photo._replace(error="the file is empty")
    try:
        with Image.open(stream, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_megapixels * 1e6:
                reason = f"{width * height / 1e6:,.0f} megapixels are over the limit of {max_megapixels:,g}"
                return photo._replace(width=width, height=height, error=f"{reason} (--max-megapixels)")
            small, metadata, turned = _decode_upright(image, image_size)
    except (
        Exception
    ) as error:  # decoders raise anything on bad bytes: struct.error, SyntaxError, MemoryError ...
        return photo._replace(error=describe_error(error))
    width, height = (height, width) if turned else (width, height)
    return photo._replace(width=width, height=height, image=small, metadata=metadata)


def decode_image(path: Path, image_size: int) -> Image.Image:
    """Decode one file just as the index does: RGB, upright, shrunk towards image_size.

    Raises what Pillow raises.
    """
    with Image.open(path, formats=FORMATS) as image:
        return _decode_upright(image, image_size)[0]


def _decode_upright(image: Image.Image, image_size: int) -> tuple[Image.Image, Metadata, bool]:
    """The image as RGB, upright and small; its metadata; whether turning it upright swapped its sides."""
    image.draft(None, (image_size, image_size))  # JPEG only: decodes straight to a half, quarter or eighth
    image.load()
    metadata = _read_metadata(image)
    turned = _turn_upright(image)
    return _shrink(_flatten_to_rgb(image), image_size), metadata, turned


def _read_metadata(image: Image.Image) -> Metadata:
    try:
        return read_metadata(image.getexif())
    except Exception:  # broken EXIF is no reason to lose the photo
        return NO_METADATA


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
