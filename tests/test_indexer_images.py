"""Finding and decoding: every kind of bad file becomes a reason, every good one upright RGB pixels."""

import os
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoders.base import NothingToIndex
from indexer.decode import decode_image, quiet_pillow, read_photo
from indexer.images import ImageFile, Photo
from indexer.paths import escape_path, show_path, unescape_path
from indexer.sources import open_source

SIZE = 32


def read(path: Path, max_megapixels: float = 200.0) -> Photo:
    file = ImageFile(escape_path(path.name), path.stat().st_size, path.stat().st_mtime_ns)
    with quiet_pillow():
        return read_photo(open_source(path.parent), file, SIZE, max_megapixels)


def pixels(path: Path) -> np.ndarray:
    photo = read(path)
    assert photo.error == ""
    assert photo.image is not None and photo.image.mode == "RGB"
    return np.asarray(photo.image).astype(int)


def draw_corner(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """White, but for a red quarter at the upper left: no two of the eight orientations look alike."""
    image = Image.new("RGB", size, "white")
    image.paste((255, 0, 0), (0, 0, size[0] // 2, size[1] // 2))
    return image


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


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_every_exif_orientation_gives_the_upright_image(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    upright = draw_corner((240, 160))
    turn = UNDO[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    options = {"quality": 95} if suffix in ("jpg", "avif") else {}
    stored.save(path, exif=exif, **options)
    photo = read(path)
    assert (photo.width, photo.height) == upright.size
    assert photo.image is not None
    wide, high = photo.image.size
    assert wide > high
    seen = np.asarray(photo.image).astype(int)
    assert np.abs(seen[high // 4, wide // 4] - (255, 0, 0)).max() < 40
    for row, column in ((1, 3), (3, 1), (3, 3)):
        assert seen[row * high // 4, column * wide // 4].min() > 215


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    expected = np.rint(values / 257)
    assert np.abs(pixels(tmp_path / "deep.png")[..., 0] - expected).max() <= 1


def test_a_dark_16_bit_image_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16), 200, np.uint16)).save(tmp_path / "dark.png")
    assert pixels(tmp_path / "dark.png").max() <= 1


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0, 1e6])
def test_floats_fill_the_range_they_are_written_in(tmp_path: Path, top: float) -> None:
    values = np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "float.tif")
    seen = pixels(tmp_path / "float.tif")[..., 0]
    assert np.abs(seen - np.arange(256).reshape(16, 16)).max() <= 1


def test_cmyk_is_read_as_its_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    assert np.abs(pixels(tmp_path / "print.jpg") - (255, 0, 0)).max() < 12


def test_a_palette_is_read_as_its_colours(tmp_path: Path) -> None:
    draw_corner().quantize(8).save(tmp_path / "palette.png")
    seen = pixels(tmp_path / "palette.png")
    assert tuple(seen[2, 2]) == (255, 0, 0) and tuple(seen[-2, -2]) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(tmp_path: Path, mode: str) -> None:
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    if mode == "P":
        Image.new("P", (40, 40), 0).save(tmp_path / "clear.png", transparency=0)
    else:
        clear.convert(mode).save(tmp_path / "clear.png")
    assert pixels(tmp_path / "clear.png").min() == 255


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "green")]
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"film.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert np.abs(pixels(path) - (255, 0, 0)).max() < 8


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), "blue").save(tmp_path / "dot.png")
    assert pixels(tmp_path / "dot.png").tolist() == [[[0, 0, 255]]]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_large_image_reaches_the_model_small(tmp_path: Path, suffix: str) -> None:
    draw_corner((1999, 1000)).save(tmp_path / f"large.{suffix}")
    photo = read(tmp_path / f"large.{suffix}")
    assert photo.image is not None
    assert SIZE <= min(photo.image.size) < 2 * SIZE
    assert (photo.width, photo.height) == (1999, 1000)


def test_a_long_strip_does_not_stay_long(tmp_path: Path) -> None:
    Image.new("RGB", (60_000, 40)).save(tmp_path / "strip.png")
    photo = read(tmp_path / "strip.png")
    assert photo.image is not None and max(photo.image.size) <= 16 * SIZE


def test_decode_image_gives_what_the_index_reads(tmp_path: Path) -> None:
    draw_corner((500, 300)).save(tmp_path / "photo.jpg")
    assert (np.asarray(decode_image(tmp_path / "photo.jpg", SIZE)) == pixels(tmp_path / "photo.jpg")).all()


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
    """A PNG that declares its size and ends there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_too_many_pixels_are_refused_by_the_header_alone(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(20_000, 20_000))
    photo = read(tmp_path / "bomb.png")
    assert photo.error == "400 megapixels are over the limit of 200 (--max-megapixels)"
    assert (photo.width, photo.height) == (20_000, 20_000)


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
    assert pixels(tmp_path / "photo.jpg").shape == (40, 60, 3)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_opened_is_not_blamed_on_its_bytes(tmp_path: Path) -> None:
    draw_corner().save(tmp_path / "secret.png")
    (tmp_path / "secret.png").chmod(0)
    photo = read(tmp_path / "secret.png")
    assert photo.unread and photo.error == "Permission denied"


def test_a_file_gone_since_the_listing_is_a_reason(tmp_path: Path) -> None:
    photo = read_photo(open_source(tmp_path), ImageFile("gone.png", 9, 9), SIZE, 200.0)
    assert photo.unread and photo.error == "No such file or directory"


def names(root: Path, *exclude: str) -> list[str]:
    return [file.path for file in open_source(root).find(exclude).files]


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def test_images_are_found_by_extension_sorted_and_hidden_ones_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a/z.png", "a.webp", "notes.txt", ".hidden/c.jpg", ".fwd2bot/d.jpg", "._e.jpg")
    assert names(tmp_path) == ["a.webp", "a/z.png", "b.JPG"]


def test_excluded_globs_match_names_and_paths(tmp_path: Path) -> None:
    touch(tmp_path, "keep/a.jpg", "keep/thumb_a.jpg", "trash/b.jpg", "deep/trash/c.jpg")
    assert names(tmp_path, "thumb_*", "trash") == ["keep/a.jpg"]
    assert names(tmp_path, "keep/*") == ["deep/trash/c.jpg", "trash/b.jpg"]


def test_a_folder_linked_in_a_circle_is_visited_once_and_by_its_own_path(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg", "elsewhere_outside/b.jpg")
    root = tmp_path / "photos"
    (root / "again").symlink_to(root)
    (root / "a_link").symlink_to(root / "real")
    touch(root, "real/c.jpg")
    (root / "outside").symlink_to(tmp_path / "elsewhere_outside")
    (root / "dead.jpg").symlink_to(root / "nothing.jpg")
    (root / "self.jpg").symlink_to(root / "self.jpg")
    assert names(root) == ["a.jpg", "real/c.jpg"]
    assert [file.path for file in open_source(root).find(follow_links=True).files] == [
        "a.jpg",
        "outside/b.jpg",
        "real/c.jpg",
    ]


def test_a_missing_folder_has_its_own_sentence(tmp_path: Path) -> None:
    with pytest.raises(NothingToIndex, match="is not a folder"):
        open_source(tmp_path / "absent").find()


@pytest.mark.parametrize(
    "raw", [b"plain.jpg", "Käse ☃.jpg".encode(), b"\xff\xfe.jpg", rb"back\slash\x41.jpg", b"a\nb.jpg"]
)
def test_any_name_survives_being_stored_and_shows_as_one_line(raw: bytes) -> None:
    path = os.fsdecode(raw)
    stored = escape_path(path)
    stored.encode("utf-8")
    assert unescape_path(stored) == path
    shown = show_path(path)
    shown.encode("utf-8")
    assert len(shown.splitlines()) == 1


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
def test_names_that_are_no_text_are_found_and_read(tmp_path: Path) -> None:
    for raw in (b"\xff\xfe.png", b"new\nline.png"):
        draw_corner().save(tmp_path / "photo.png")
        (tmp_path / "photo.png").rename(tmp_path / os.fsdecode(raw))
    files = open_source(tmp_path).find().files
    assert [file.path for file in files] == [r"\xff\xfe.png", "new\nline.png"]
    assert [read_photo(open_source(tmp_path), file, SIZE, 200.0).error for file in files] == ["", ""]
