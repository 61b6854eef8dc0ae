"""An opened image to upright RGB pixels, no more of them than the model reads."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from encoders.base import FloatArray

from .metadata import read_orientation

LONGEST_SIDE = 16  # in units of image_size: a 2,000 x 100,000 strip must not fill the memory either
_PIXELS_AT_ONCE = 1 << 20  # on their way to RGB, where each has several copies of up to twelve bytes


def decode_upright(image: Image.Image, image_size: int) -> tuple[Image.Image, bool]:
    """Decode the first frame: RGB, upright and small; and whether turning it upright swapped its sides.

    The shorter side comes out between image_size and twice that, where the original has so many.
    """
    # JPEG decodes straight to a half, quarter or eighth, HEIC may have a thumbnail; others know no draft.
    image.draft(None, (image_size, image_size))
    image.load()
    swapped = _turn_upright(image)
    small = _reduce_to_rgb(image, max(1, min(image.size) // image_size))
    if max(small.size) > LONGEST_SIDE * image_size:
        small.thumbnail((LONGEST_SIDE * image_size, LONGEST_SIDE * image_size))
    return small, swapped


def _turn_upright(image: Image.Image) -> bool:
    """Apply the EXIF orientation in place; true where width and height changed places."""
    try:
        swapped = read_orientation(image.getexif()) >= 5
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # broken EXIF is no reason to lose the photo
        return False
    return swapped


def _reduce_to_rgb(image: Image.Image, factor: int) -> Image.Image:
    """Make RGB of an image and reduce it, in strips of whole blocks: the pixels are those of the whole."""
    if image.mode == "RGB" and not image.has_transparency_data:  # most photos, which need no copy
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
    if isinstance(image.info.get("transparency"), str):  # a text that a PNG calls so, and no colour
        del image.info["transparency"]
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _find_white(image: Image.Image, boxes: Sequence[tuple[int, int, int, int]]) -> float:
    """The top of a deep image's range, to become 255: Pillow's own conversion makes all above 255 white."""
    peak = max(float(_read_values(image.crop(box)).max()) for box in boxes)
    usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    return next((limit for limit in usual if peak <= limit), peak)


def _read_values(image: Image.Image) -> FloatArray:
    """The pixels of one band, 0 where they are no numbers."""
    values = np.asarray(image).astype(np.float32)
    return np.nan_to_num(values, copy=False, posinf=0.0, neginf=0.0)
