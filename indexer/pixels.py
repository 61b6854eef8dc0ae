"""An opened image to upright RGB pixels, no more of them than the model reads."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .metadata import read_orientation

LONGEST_SIDE = 16  # in units of image_size: a 2,000 x 100,000 strip must not fill the memory either


def decode_upright(image: Image.Image, image_size: int) -> tuple[Image.Image, bool]:
    """Decode the first frame: RGB, upright and small; and whether turning it upright swapped its sides.

    The shorter side comes out between image_size and twice that, where the original has so many.
    """
    # JPEG decodes straight to a half, quarter or eighth, HEIC may have a thumbnail; others know no draft.
    image.draft(None, (image_size, image_size))
    image.load()
    swapped = _turn_upright(image)
    return _shrink(_flatten_to_rgb(image), image_size), swapped


def _turn_upright(image: Image.Image) -> bool:
    """Apply the EXIF orientation in place; true where width and height changed places."""
    try:
        swapped = read_orientation(image.getexif()) >= 5
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # broken EXIF is no reason to lose the photo
        return False
    return swapped


def _flatten_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scale_to_bytes(np.asarray(image))).convert("RGB")
    if isinstance(image.info.get("transparency"), str):  # a text that a PNG calls so, and no colour
        del image.info["transparency"]
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
