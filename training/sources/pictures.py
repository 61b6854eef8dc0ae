"""One picture of a training set, from a file or from bytes: RGB and upright, or a DatasetError why not."""

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from encoders.base import DatasetError

# Said outright: by default Pillow looks at the bytes alone and would hand an EPS called .jpg to Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_LONGEST_SHAPE = 100  # times as long as wide: image processors fail on more, or write no token for it


def open_picture(place: Path | BytesIO, side: int) -> Image.Image:
    """Decode a picture; a JPEG much larger than `side` pixels is decoded smaller, unless `side` is 0.

    Pictures of more pixels than Pillow thinks safe (about 90 million) are refused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, mostly
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(place, formats=_FORMATS) as picture:
                _require_shape(picture)
                if side:
                    picture.draft(None, (side, side))
                return ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError:
        raise DatasetError("there is no such picture") from None
    except DatasetError:
        raise
    except (
        Exception
    ) as error:  # decoders raise anything on bad bytes: struct.error, SyntaxError, MemoryError ...
        raise DatasetError(f"the picture cannot be decoded: {error}") from error


def square_picture(picture: Image.Image, side: int) -> NDArray[np.uint8]:
    """Squeeze a picture to a square: uint8 (side, side, 3)."""
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))


def _require_shape(picture: Image.Image) -> None:
    width, height = picture.size
    if max(width, height) > _LONGEST_SHAPE * min(width, height):
        raise DatasetError(
            f"a picture of {width} x {height} is more than {_LONGEST_SHAPE} times as long as wide"
        )
