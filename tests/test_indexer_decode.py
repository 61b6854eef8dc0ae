"""Decoding: every kind of bad file yields a reason, every good one upright RGB pixels."""

import os
import struct
import sys
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from benchmarks.fuzz_files import draw_picture, make_exif, make_files
from indexer.decode import quiet_pillow, read_photo
from indexer.images import MAX_FILE_BYTES, ImageFile, describe_error
from indexer.recorder import describe_photo
from indexer.sources import open_source
from tests.pictures import SIZE, UNDO, assert_upright, draw_corner, read, read_pixels, turn

FILES = make_files()


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif", "heic"])
def test_every_exif_orientation_gives_the_upright_image(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    upright = draw_corner((240, 160))
    path = tmp_path / f"photo.{suffix}"
    exif = make_exif(orientation).tobytes()  # pillow_heif turns these bytes into their HEIC equivalent
    options: dict[str, object] = {"quality": 95} if suffix in ("jpg", "avif", "heic") else {}
    turn(upright, orientation).save(path, exif=exif, **options)
    photo = read(path)
    assert (photo.width, photo.height) == upright.size
    assert photo.metadata.orientation == orientation
    assert_upright(photo.image)


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    expected = np.rint(values / 257)
    assert np.abs(read_pixels(tmp_path / "deep.png")[..., 0] - expected).max() <= 1


def test_a_dark_16_bit_image_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16), 200, np.uint16)).save(tmp_path / "dark.png")
    assert read_pixels(tmp_path / "dark.png").max() <= 1


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0, 1e6])
def test_floats_fill_the_range_they_are_written_in(tmp_path: Path, top: float) -> None:
    values = np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "float.tif")
    seen = read_pixels(tmp_path / "float.tif")[..., 0]
    assert np.abs(seen - np.arange(256).reshape(16, 16)).max() <= 1


def test_cmyk_is_read_as_its_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    assert np.abs(read_pixels(tmp_path / "print.jpg") - (255, 0, 0)).max() < 12


def test_a_palette_is_read_as_its_colours(tmp_path: Path) -> None:
    draw_corner().quantize(8).save(tmp_path / "palette.png")
    seen = read_pixels(tmp_path / "palette.png")
    assert tuple(seen[2, 2]) == (255, 0, 0) and tuple(seen[-2, -2]) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(tmp_path: Path, mode: str) -> None:
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    if mode == "P":
        Image.new("P", (40, 40), 0).save(tmp_path / "clear.png", transparency=0)
    else:
        clear.convert(mode).save(tmp_path / "clear.png")
    assert read_pixels(tmp_path / "clear.png").min() == 255


def test_a_text_called_transparency_is_no_colour(tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("transparency", "of the sea")
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "sea.png", pnginfo=texts)
    assert read_pixels(tmp_path / "sea.png")[0, 0].tolist() == [0, 0, 255]


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "green")]
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"film.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert np.abs(read_pixels(path) - (255, 0, 0)).max() < 8


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), "blue").save(tmp_path / "dot.png")
    assert read_pixels(tmp_path / "dot.png").tolist() == [[[0, 0, 255]]]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_large_image_reaches_the_model_small(tmp_path: Path, suffix: str) -> None:
    draw_corner((1999, 1000)).save(tmp_path / f"large.{suffix}")
    photo = read(tmp_path / f"large.{suffix}")
    assert photo.image is not None
    assert SIZE <= min(photo.image.size) < 2 * SIZE
    assert (photo.width, photo.height) == (1999, 1000)


def test_a_long_strip_does_not_stay_long(tmp_path: Path) -> None:
    Image.new("RGB", (40, 4_000)).save(tmp_path / "strip.png")
    photo = read(tmp_path / "strip.png")
    assert photo.image is not None and max(photo.image.size) <= 16 * SIZE


@pytest.mark.parametrize("size", [(500, 1), (1, 101), (60_000, 40), (40, 4_001)])
def test_a_strip_over_100_times_as_long_as_wide_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "strip.png")
    photo = read(tmp_path / "strip.png")
    assert photo.error == f"{size[0]} x {size[1]} pixels are more than 100 times as long as wide"
    assert photo.image is None and (photo.width, photo.height) == size and not photo.unread


def jpeg_bytes() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"these are words, not pixels", "not an image"),
        (jpeg_bytes()[:5000], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, ""),
    ],
)
def test_bad_bytes_become_one_line_of_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    photo = read(tmp_path / "bad.jpg")
    assert photo.image is None and not photo.unread
    assert photo.error and reason in photo.error and "\n" not in photo.error


def png_header(width: int, height: int) -> bytes:
    """A PNG that ends after the header, which states its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("size", "limit", "said"),
    [
        ((20_000, 20_000), 200, "400 megapixels are over the limit of 200"),
        ((20_001, 10_000), 200, "200.01 megapixels are over the limit of 200"),
        ((200, 200), 0.01, "0.04 megapixels are over the limit of 0.01"),
    ],
)
def test_too_many_pixels_are_refused_by_the_header_alone(
    tmp_path: Path, size: tuple[int, int], limit: float, said: str
) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    photo = read(tmp_path / "bomb.png", max_megapixels=limit)
    assert photo.error == f"{said} (--max-megapixels)" and (photo.width, photo.height) == size


@pytest.mark.parametrize("size", [(1 << 31, 10), (10, 1 << 31), ((1 << 32) - 1, (1 << 32) - 1)])
def test_a_size_that_no_column_can_hold_is_recorded_as_none(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    row = describe_photo(read(tmp_path / "bomb.png"))
    assert "over the limit of 200" in row.error and (row.width, row.height) == (0, 0)


def test_the_limit_on_pixels_can_be_raised_past_that_of_pillow(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(20_000, 10))
    assert "megapixels" in read(tmp_path / "bomb.png", max_megapixels=0.1).error
    Image.MAX_IMAGE_PIXELS, kept = 100, Image.MAX_IMAGE_PIXELS
    try:
        draw_corner().save(tmp_path / "fine.png")
        assert read(tmp_path / "fine.png").error == ""
        assert Image.MAX_IMAGE_PIXELS == 100
    finally:
        Image.MAX_IMAGE_PIXELS = kept


def test_warnings_of_pillow_stay_inside_and_others_do_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_pillow():
            warnings.warn_explicit(
                "corrupt EXIF", UserWarning, "TiffImagePlugin.py", 1, "PIL.TiffImagePlugin"
            )
            with pytest.raises(UserWarning):
                warnings.warn("ours", UserWarning, stacklevel=1)


def test_broken_exif_does_not_lose_the_photo(tmp_path: Path) -> None:
    draw_corner().save(tmp_path / "photo.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert read_pixels(tmp_path / "photo.jpg").shape == (40, 60, 3)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_opened_is_not_blamed_on_its_bytes(tmp_path: Path) -> None:
    draw_corner().save(tmp_path / "secret.png")
    (tmp_path / "secret.png").chmod(0)
    photo = read(tmp_path / "secret.png")
    assert photo.unread and photo.error == "Permission denied"


def test_a_file_gone_since_the_listing_is_a_reason(tmp_path: Path) -> None:
    photo = read_photo(open_source(tmp_path), ImageFile("gone.png", 9, 9), SIZE, 200.0)
    assert photo.unread and photo.error == "No such file or directory"


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith((".zip", ".tar"))])
def test_every_kind_of_file_shows_the_picture_that_was_saved(tmp_path: Path, name: str) -> None:
    if name.endswith(".dng"):
        pytest.importorskip("rawpy")
    (tmp_path / name).write_bytes(FILES[name])
    photo = read(tmp_path / name)
    assert photo.error == "" and photo.image is not None
    assert (photo.width, photo.height) == draw_picture().size
    seen = np.asarray(photo.image.resize((SIZE, SIZE)).convert("L"), float)
    saved = np.asarray(draw_picture().resize((SIZE, SIZE)).convert("L"), float)
    assert np.corrcoef(seen.ravel(), saved.ravel())[0, 1] > 0.8  # RAW development changes colours


@pytest.mark.parametrize(
    ("name", "package", "extra"), [("photo.heic", "pillow_heif", "heic"), ("plain.dng", "rawpy", "raw")]
)
def test_a_format_without_its_extra_names_the_remedy_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    pytest.importorskip(package)
    (tmp_path / name).write_bytes(FILES[name])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, package, None)
        photo = read(tmp_path / name)
    assert photo.unread and photo.error == f'it needs one more package: pip install "fwd2bot[{extra}]"'
    assert read(tmp_path / name).error == ""


def test_heic_under_another_name_is_known_by_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pillow_heif")
    (tmp_path / "photo.jpg").write_bytes(FILES["photo.heic"])
    assert read(tmp_path / "photo.jpg").error == ""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    photo = read(tmp_path / "photo.jpg")
    assert photo.unread and "fwd2bot[heic]" in photo.error


def test_a_file_over_the_limit_is_refused_unopened(tmp_path: Path) -> None:
    size = MAX_FILE_BYTES + (88 << 20)
    photo = read_photo(open_source(tmp_path), ImageFile("absent.tif", size, 0), SIZE, 200.0)
    assert photo.error == "600 MiB are over the limit of 512 MiB for one file" and not photo.unread


def test_a_known_digest_stops_a_file_before_it_is_decoded(tmp_path: Path) -> None:
    draw_corner().save(tmp_path / "photo.png")
    source, digest = open_source(tmp_path), read(tmp_path / "photo.png").digest
    (file,) = source.find().files
    photo = read_photo(source, file, SIZE, 200.0, known={digest})
    assert photo == (file, digest, 0, 0, None, "", False, True, photo.metadata)
    assert not read_photo(source, file, SIZE, 200.0, known={"another"}).known


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("two\nlines \x1b[31m\udcff and\u2028more"), "two lines [31m and more"),
        (ValueError("x" * 5000), "x" * 300),
        (MemoryError(), "no memory left (MemoryError)"),
        (PermissionError(13, "Permission denied", "/secret"), "Permission denied"),
        (UnidentifiedImageError("<_io.BytesIO object>"), "not an image of a known format"),
    ],
)
def test_a_reason_is_a_line_that_can_be_stored_and_shown(error: Exception, reason: str) -> None:
    assert describe_error(error) == reason
