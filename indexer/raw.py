"""Camera RAW files: the preview embedded by the camera, or else a quick half-size development by LibRaw.

Needs the extra [raw].
"""

from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from rawpy import RawPy

_ORIENTATIONS = {3: 3, 5: 8, 6: 6}  # LibRaw flip: EXIF orientation


def open_raw(stream: BinaryIO) -> "RawPy":
    """Open a RAW file, which the caller must close; nothing is decoded yet."""
    import rawpy

    return rawpy.imread(stream)


def measure_raw(raw: "RawPy") -> tuple[int, int]:
    """Width and height of the upright photo."""
    sizes = raw.sizes
    return (sizes.height, sizes.width) if sizes.flip in (5, 6) else (sizes.width, sizes.height)


def open_view(raw: "RawPy", image_size: int) -> Image.Image:
    """The camera's preview if it has enough pixels for the model, else the sensor image at half size.

    It is upright already, or has an EXIF orientation to make it so.
    """
    try:
        preview = _load_preview(raw, image_size)
    except Exception:  # there is none, or its format or content cannot be read
        preview = None
    return preview or Image.fromarray(raw.postprocess(half_size=True, use_camera_wb=True))


def _load_preview(raw: "RawPy", image_size: int) -> Image.Image | None:
    """Decode the preview; None if it is too small for the model, or larger than the photo itself."""
    import rawpy

    thumbnail, size = raw.extract_thumb(), measure_raw(raw)
    if thumbnail.format == rawpy.ThumbFormat.JPEG:  # LibRaw adds an EXIF orientation if it has none
        preview: Image.Image = Image.open(BytesIO(bytes(thumbnail.data)), formats=("JPEG",))
    else:
        preview = Image.fromarray(np.asarray(thumbnail.data))
        preview.getexif()[0x0112] = _ORIENTATIONS.get(raw.sizes.flip, 1)
    if min(preview.size) < min(image_size, *size) or max(preview.size) > max(size):
        return None
    preview.draft(None, (image_size, image_size))
    preview.load()
    return preview
