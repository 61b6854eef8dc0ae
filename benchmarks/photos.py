"""JPEG files that are as expensive to decode as camera photos: a few are drawn, many written, none identical.

A photo is a scene over noise at every scale, with sensor grain, in 4:3.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.scenes import draw_scene, make_scene

_SERIES = 5
_DRAWN = 12
_GRAIN = 3.0
_QUALITY = 88  # about 0.25 bytes a pixel, as cameras write
_COMMENT = b"\xff\xfe"


def write_photos(folder: Path, count: int, megapixels: float) -> None:
    """Write `count` JPEGs of about `megapixels` each, a thousand per folder; no two have the same bytes."""
    drawn = [draw_photo(number, megapixels) for number in range(min(count, _DRAWN))]
    for number, content in enumerate(_number_contents(drawn, count)):
        place = folder / f"{number // 1000:04d}"
        if number % 1000 == 0:
            place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:07d}.jpg").write_bytes(content)


def draw_photo(number: int, megapixels: float) -> bytes:
    """One photo as JPEG bytes, determined by the arguments."""
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    height = round(width * 3 / 4)
    random = np.random.default_rng([_SERIES, number])
    picture = _draw_clouds(random, width, height)
    scene = draw_scene(make_scene(_SERIES, number), height // 2)
    picture.paste(scene, (width // 4, height // 4))
    pixels = np.asarray(picture, np.float32)
    pixels = pixels + random.standard_normal(pixels.shape, np.float32) * _GRAIN
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _draw_clouds(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise layers of 4, 8, 16, ... cells across, blended coarse to fine; cells are larger than 8 pixels."""
    clouds = Image.new("RGB", (width, height), "grey")
    cells = 4
    while cells < width // 8:
        noise = random.integers(0, 256, (cells * 3 // 4, cells, 3), np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        clouds = Image.blend(clouds, layer, 0.5 if cells == 4 else 0.3)
        cells *= 2
    return clouds


def _number_contents(drawn: list[bytes], count: int) -> Iterator[bytes]:
    """Cycle through the photos, inserting each file's number as a JPEG comment after the start marker."""
    for number in range(count):
        content, comment = drawn[number % len(drawn)], f"{number:09d}".encode()
        segment = _COMMENT + (len(comment) + 2).to_bytes(2, "big") + comment
        yield content[:2] + segment + content[2:]
