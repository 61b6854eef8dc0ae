"""Camera RAW: the preview that the camera made, or else a quick development at half size (LibRaw).

Needs the extra [raw].
"""

from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from rawpy import RawPy

_ORIENTATIONS = {3: 3, 5: 8, 6: 6}  # of LibRaw's flips: how EXIF says the same


def open_raw(stream: BinaryIO) -> "RawPy":
    """Open a RAW file, to be closed again; nothing is decoded yet."""
    import rawpy

    return rawpy.imread(stream)


def measure_raw(raw: "RawPy") -> tuple[int, int]:
    """Width and height of the upright photo."""
    sizes = raw.sizes
    return (sizes.height, sizes.width) if sizes.flip in (5, 6) else (sizes.width, sizes.height)


def open_view(raw: "RawPy", image_size: int) -> Image.Image:
    """The camera's preview if it has the pixels that the model reads, else the sensor's at half size.

    Turned upright, or with an EXIF orientation that says how.
    """
    try:
        preview = _load_preview(raw, image_size)
    except Exception:  # there is none, or one of a kind or content that cannot be read
        preview = None
    return preview or Image.fromarray(raw.postprocess(half_size=True, use_camera_wb=True))


def _load_preview(raw: "RawPy", image_size: int) -> Image.Image | None:
    """Decode the preview; None where it is too small to see, or larger than the photo it is to show."""
    import rawpy

    thumbnail, size = raw.extract_thumb(), measure_raw(raw)
    if thumbnail.format == rawpy.ThumbFormat.JPEG:  # LibRaw gives it an EXIF orientation if it has none
        preview: Image.Image = Image.open(BytesIO(bytes(thumbnail.data)), formats=("JPEG",))
    else:
        preview = Image.fromarray(np.asarray(thumbnail.data))
        preview.getexif()[0x0112] = _ORIENTATIONS.get(raw.sizes.flip, 1)
    if min(preview.size) < min(image_size, *size) or max(preview.size) > max(size):
        return None
    preview.draft(None, (image_size, image_size))
    preview.load()
    return preview
