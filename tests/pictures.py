"""Helpers for the tests of image reading: a picture that shows its orientation, and readers for any file."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from indexer.decode import quiet_pillow, read_photo
from indexer.images import ImageFile, Photo
from indexer.paths import escape_path
from indexer.sources import open_source

SIZE = 32
UNDO = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def draw_corner(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """White with a red upper left quarter, so that all eight orientations look different."""
    image = Image.new("RGB", size, "white")
    image.paste((255, 0, 0), (0, 0, size[0] // 2, size[1] // 2))
    return image


def draw_bytes(kind: str = "PNG") -> bytes:
    """The bytes of an image file of `draw_corner`."""
    stream = BytesIO()
    draw_corner().save(stream, kind)
    return stream.getvalue()


def turn(upright: Image.Image, orientation: int) -> Image.Image:
    """Turn an upright picture into what a camera stores with this EXIF orientation."""
    undo = UNDO[orientation]
    return upright if undo is None else upright.transpose(undo)


def assert_upright(image: Image.Image | None) -> None:
    """Check that the red quarter of `draw_corner` is at the upper left and the rest is white."""
    assert image is not None
    wide, high = image.size
    assert wide > high
    seen = np.asarray(image).astype(int)
    assert np.abs(seen[high // 4, wide // 4] - (255, 0, 0)).max() < 40
    for row, column in ((1, 3), (3, 1), (3, 3)):
        assert seen[row * high // 4, column * wide // 4].min() > 215


def read(path: Path, max_megapixels: float = 200.0) -> Photo:
    """Read a file as the index does."""
    file = ImageFile(escape_path(path.name), path.stat().st_size, path.stat().st_mtime_ns)
    with quiet_pillow():
        return read_photo(open_source(path.parent), file, SIZE, max_megapixels)


def read_pixels(path: Path) -> np.ndarray:
    """The pixels of a readable file: int (height, width, 3)."""
    photo = read(path)
    assert photo.error == ""
    assert photo.image is not None and photo.image.mode == "RGB"
    return np.asarray(photo.image).astype(int)


def read_all(root: Path | str, **options: bool) -> dict[str, Photo]:
    """Read every file that a source finds; the keys are paths."""
    source = open_source(root)
    with quiet_pillow():
        return {file.path: read_photo(source, file, SIZE, 200.0) for file in source.find(**options).files}
