"""Large images: reducing them in strips gives the same pixels as reducing the whole, in bounded memory."""

import io

import numpy as np
import pytest
from PIL import Image

from indexer import pixels
from indexer.pixels import decode_upright

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]
SIZES = [(20, 20), (40, 33), (97, 64), (64, 97), (323, 70), (70, 331), (1600, 16)]


def draw_noise(mode: str, size: tuple[int, int]) -> Image.Image:
    """Random pixels, some of them transparent if the mode allows it."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), np.uint8)
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(noise[..., 0].astype(kind) * kind(300) - kind(99 * (mode != "I;16")))
    image = Image.fromarray(noise)
    return image.quantize(16) if mode == "P" else image.convert(mode)


def shrink_whole(image: Image.Image, image_size: int) -> Image.Image:
    """The reference: the whole image to RGB on white, then the means of blocks."""
    if image.mode in ("I;16", "I", "F"):
        values = np.asarray(image).astype(np.float32)
        top = values.max() if values.max() > 65535 else 65535
        image = Image.fromarray(np.clip(values * (255 / top) + 0.5, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB").reduce(max(1, min(image.size) // image_size))
    image.thumbnail((16 * image_size, 16 * image_size))
    return image


@pytest.mark.parametrize("at_once", [1, 1000, 1 << 20])
@pytest.mark.parametrize("mode", MODES)
def test_an_image_shrunk_in_strips_is_the_whole_one_shrunk(
    monkeypatch: pytest.MonkeyPatch, mode: str, at_once: int
) -> None:
    monkeypatch.setattr(pixels, "_PIXELS_AT_ONCE", at_once)
    for size in SIZES:
        image = draw_noise(mode, size)
        small, swapped = decode_upright(image.copy(), 16)
        assert small.mode == "RGB" and not swapped
        assert np.array_equal(np.asarray(small), np.asarray(shrink_whole(image, 16)))


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_colour_that_is_transparent_is_white_in_every_strip(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(pixels, "_PIXELS_AT_ONCE", 1)
    image, stream = draw_noise(mode, (97, 64)), io.BytesIO()
    image.save(stream, "PNG", transparency=image.getpixel((3, 3)))
    small, _ = decode_upright(Image.open(stream), 16)
    assert np.array_equal(np.asarray(small), np.asarray(shrink_whole(Image.open(stream), 16)))


def test_a_large_image_is_never_rgb_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, flatten = [], pixels._flatten_to_rgb

    def watch(image: Image.Image, white: float) -> Image.Image:
        sizes.append(image.width * image.height)
        return flatten(image, white)

    monkeypatch.setattr(pixels, "_flatten_to_rgb", watch)
    decode_upright(Image.new("RGBA", (2000, 1999)), 16)
    assert sum(sizes) == 2000 * 1999 and max(sizes) <= 1 << 20
