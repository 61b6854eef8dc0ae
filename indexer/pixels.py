"""Opened images to upright RGB, scaled down towards the size that the model reads."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from encoders.base import FloatArray

from .metadata import read_orientation

LONGEST_SIDE = 16  # in units of image_size, so that a 2,000 x 100,000 strip does not fill the memory either
_PIXELS_AT_ONCE = 1 << 20  # converted to RGB at a time: each takes several copies of up to twelve bytes


def decode_upright(image: Image.Image, image_size: int) -> tuple[Image.Image, bool]:
    """Decode the first frame to a small upright RGB image, and say whether that swapped width and height.

    The shorter side ends up between image_size and twice that; it is shorter if the original is, or if the
    longer side had to be brought down to LONGEST_SIDE.
    """
    # JPEG decodes straight to 1/2, 1/4 or 1/8 scale, HEIC may have a thumbnail; other formats have no draft.
    image.draft(None, (image_size, image_size))
    image.load()
    swapped = _turn_upright(image)
    small = _reduce_to_rgb(image, max(1, min(image.size) // image_size))
    if max(small.size) > LONGEST_SIDE * image_size:
        small.thumbnail((LONGEST_SIDE * image_size, LONGEST_SIDE * image_size))
    return small, swapped


def _turn_upright(image: Image.Image) -> bool:
    """Apply the EXIF orientation in place; true if that swapped width and height."""
    try:
        swapped = read_orientation(image.getexif()) >= 5
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # broken EXIF is no reason to lose the photo
        return False
    return swapped


def _reduce_to_rgb(image: Image.Image, factor: int) -> Image.Image:
    """Convert an image to RGB and reduce it in strips of whole blocks, which gives the same pixels."""
    if image.mode == "RGB" and not image.has_transparency_data:  # most photos: no copy needed
        return image.reduce(factor) if factor > 1 else image
    width, height = image.size
    rows = factor * max(1, _PIXELS_AT_ONCE // (width * factor))
    boxes = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    white = _find_white(image, boxes) if image.mode.startswith(("I", "F")) else 0.0
    small = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for box in boxes:
        small.paste(_flatten_to_rgb(image.crop(box), white).reduce(factor), (0, box[1] // factor))
    return small


def _flatten_to_rgb(image: Image.Image, white: float) -> Image.Image:
    if white:
        values = np.clip(_read_values(image) * (255.0 / white) + 0.5, 0, 255)
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if isinstance(image.info.get("transparency"), str):  # a PNG text chunk of this name, not a colour
        del image.info["transparency"]
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _find_white(image: Image.Image, boxes: Sequence[tuple[int, int, int, int]]) -> float:
    """The value in a deep image that maps to 255; Pillow's own conversion turns all above 255 white."""
    peak = max(float(_read_values(image.crop(box)).max()) for box in boxes)
    usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    return next((limit for limit in usual if peak <= limit), peak)


def _read_values(image: Image.Image) -> FloatArray:
    """The pixels of a single-band image as float32; NaN and infinity become 0."""
    values = np.asarray(image).astype(np.float32)
    return np.nan_to_num(values, copy=False, posinf=0.0, neginf=0.0)
