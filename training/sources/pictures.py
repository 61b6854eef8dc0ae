"""Read one picture of a training set from a file or bytes: RGB and upright, or a DatasetError."""

import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets import join_below
from benchmarks.embedding import decode_stream
from encoders.base import DatasetError

_WHOLE = 1 << 20  # pixels a side, more than any picture has


def open_picture(place: Path | BytesIO, side: int) -> Image.Image:
    """Decode a picture as the index does; one much larger than `side` pixels is shrunk, unless `side` is 0.

    Raises DatasetError if it cannot be decoded, or has more pixels than Pillow considers safe (about 90
    million).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mostly about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with place.open("rb") if isinstance(place, Path) else place as stream:
                return decode_stream(stream, side or _WHOLE)
    except FileNotFoundError:
        raise DatasetError("there is no such picture") from None
    except Exception as error:  # decoders raise any class on bad bytes: struct.error, SyntaxError ...
        raise DatasetError(f"the picture cannot be decoded: {error}") from error


def locate_picture(folder: Path, record: Mapping[str, Any], field: str) -> Path:
    """The file below `folder` that a record names; raises DatasetError if it names none or one outside."""
    name = record.get(field)
    if not isinstance(name, str):
        raise DatasetError(f'its "{field}" should be one path and is {name!r:.100}')
    return join_below(folder, [name], "its record")


def square_picture(picture: Image.Image, side: int) -> NDArray[np.uint8]:
    """Squeeze a picture to a square: uint8 (side, side, 3)."""
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
