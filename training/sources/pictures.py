"""One picture of a training set, from a file or from bytes: RGB and upright, or a DatasetError why not."""

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.embedding import decode_stream
from encoders.base import DatasetError

_LONGEST_SHAPE = 100  # times as long as wide: image processors fail on more, or write no token for it
_WHOLE = 1 << 20  # pixels a side, more than any picture has


def open_picture(place: Path | BytesIO, side: int) -> Image.Image:
    """Decode a picture as the index does; one much larger than `side` pixels is shrunk, unless `side` is 0.

    Pictures of more pixels than Pillow thinks safe (about 90 million) are refused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, mostly
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with place.open("rb") if isinstance(place, Path) else place as stream:
                picture = decode_stream(stream, side or _WHOLE)
    except FileNotFoundError:
        raise DatasetError("there is no such picture") from None
    except Exception as error:  # decoders raise anything on bad bytes: struct.error, SyntaxError ...
        raise DatasetError(f"the picture cannot be decoded: {error}") from error
    if max(picture.size) > _LONGEST_SHAPE * min(picture.size):
        raise DatasetError(f"the picture is more than {_LONGEST_SHAPE} times as long as wide")
    return picture


def square_picture(picture: Image.Image, side: int) -> NDArray[np.uint8]:
    """Squeeze a picture to a square: uint8 (side, side, 3)."""
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
