"""EXIF to columns: what cameras write is read, invalid fields get their defaults, and nothing raises."""

from datetime import datetime
from pathlib import Path
from random import Random

import pytest
from PIL import Image, PngImagePlugin
from PIL.TiffImagePlugin import IFDRational

from benchmarks.fuzz import find_fault, mutate
from benchmarks.fuzz_files import make_exif, make_files, make_tiff_tags
from indexer.images import ImageFile, Photo
from indexer.metadata import NO_METADATA, Metadata, read_metadata
from tests.pictures import draw_corner, read

WRITTEN = Metadata(datetime(2021, 7, 8, 9, 10, 11), "Maker One", "50mm f/1.8", 52.51, -13.405, 1)
DEGREES = (52.0, 30.0, 36.0)


def assert_near(seen: Metadata, expected: Metadata) -> None:
    assert seen.latitude == pytest.approx(expected.latitude) and seen.longitude == pytest.approx(
        expected.longitude
    )
    assert seen._replace(latitude=None, longitude=None) == expected._replace(latitude=None, longitude=None)


def store(exif: Image.Exif) -> Image.Exif:
    """The EXIF as read back from a file."""
    loaded = Image.Exif()
    loaded.load(exif.tobytes())
    return loaded


def read_tags(
    base: dict[int, object] | None = None,
    camera: dict[int, object] | None = None,
    place: dict[int, object] | None = None,
) -> Metadata:
    """Read metadata from EXIF with these tags, with values as Pillow would return them."""
    exif = Image.Exif()
    exif.update(base or {})
    exif.get_ifd(0x8769).update(camera or {})
    exif.get_ifd(0x8825).update(place or {})
    return read_metadata(exif)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif", "heic", "tif"])
def test_what_the_camera_wrote_is_read_from_every_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if suffix == "tif":
        draw_corner().save(path, tiffinfo=make_tiff_tags())
    else:
        draw_corner().save(path, exif=make_exif().tobytes())
    assert_near(read(path).metadata, WRITTEN)


def test_a_raw_file_tells_its_camera(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    (tmp_path / "photo.dng").write_bytes(make_files()["plain.dng"])
    assert read(tmp_path / "photo.dng").metadata == NO_METADATA._replace(camera="Maker Raw")


def test_a_photo_without_exif_is_neutral(tmp_path: Path) -> None:
    draw_corner().save(tmp_path / "photo.png")
    assert read(tmp_path / "photo.png").metadata == NO_METADATA == (None, "", "", None, None, 1)


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Canon", "Canon EOS R5", "Canon EOS R5"),
        ("NIKON CORPORATION", "NIKON Z 6", "NIKON CORPORATION NIKON Z 6"),
        ("Apple", "iPhone 15", "Apple iPhone 15"),
        ("Apple", "", "Apple"),
        ("", "DMC-LX100", "DMC-LX100"),
        ("A\0\n\x1b[31m", "  B\u2028\ud800 ", "A[31m B"),
        ("m" * 5000, "n" * 5000, "m" * 100),
        (b"bytes", 7, ""),
    ],
)
def test_a_camera_is_make_and_model_in_printable_characters(make: object, model: object, camera: str) -> None:
    assert read_tags({0x010F: make, 0x0110: model}).camera == camera


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("2021:07:08 09:10:11", datetime(2021, 7, 8, 9, 10, 11)),
        ("2021:07:08 09:10:11.123+02:00", datetime(2021, 7, 8, 9, 10, 11)),
        ("0000:00:00 00:00:00", None),
        ("    :  :     :  :  ", None),
        ("2021:02:30 09:10:11", None),
        ("2021:07:08 24:00:00", None),
        ("2021:07:08", None),
        ("yesterday", None),
        ("", None),
        (2021, None),
        (b"2021:07:08 09:10:11", None),
    ],
)
def test_a_date_that_does_not_parse_is_none(written: object, read_as: datetime | None) -> None:
    assert read_tags(camera={0x9003: written}).taken_at == read_as
    assert read_tags(camera={0x9003: "no date", 0x9004: written}).taken_at == read_as


@pytest.mark.parametrize(
    ("place", "latitude", "longitude"),
    [
        ({1: "N", 2: DEGREES, 3: "E", 4: (180, 0, 0)}, 52.51, 180.0),
        ({1: "S", 2: DEGREES, 3: "W", 4: DEGREES}, -52.51, -52.51),
        ({1: "S\0", 2: (0, 0, 0), 3: "e", 4: (0, 0, 0)}, 0.0, 0.0),
        ({1: "N", 2: DEGREES}, None, None),
        ({2: DEGREES, 4: DEGREES}, None, None),
        ({1: "E", 2: DEGREES, 3: "N", 4: DEGREES}, None, None),
        ({1: "N", 2: (90, 0, 1), 3: "E", 4: DEGREES}, None, None),
        ({1: "N", 2: DEGREES, 3: "E", 4: (181, 0, 0)}, None, None),
        ({1: "N", 2: (-1, 0, 0), 3: "E", 4: DEGREES}, None, None),
        ({1: "N", 2: (IFDRational(1, 0), 0, 0), 3: "E", 4: DEGREES}, None, None),
        ({1: "N", 2: (float("nan"), 0, 0), 3: "E", 4: DEGREES}, None, None),
        ({1: "N", 2: (10**400, 0, 0), 3: "E", 4: DEGREES}, None, None),
        ({1: "N", 2: (52, 30), 3: "E", 4: DEGREES}, None, None),
        ({1: "N", 2: 52.5, 3: "E", 4: DEGREES}, None, None),
        ({1: "N", 2: ("52", "30", "x"), 3: "E", 4: DEGREES}, None, None),
        ({1: b"N", 2: DEGREES, 3: "E", 4: DEGREES}, None, None),
    ],
)
def test_a_place_is_on_the_globe_or_nowhere(
    place: dict[int, object], latitude: float | None, longitude: float | None
) -> None:
    seen = read_tags(place=place)
    assert seen.latitude == pytest.approx(latitude) and seen.longitude == pytest.approx(longitude)


@pytest.mark.parametrize("value", [0, 9, -1, 65535, "6", 6.0, b"\x06", (6, 6), None])
def test_an_orientation_that_is_none_is_upright(value: object) -> None:
    assert read_tags({0x0112: value}).orientation == 1
    assert read_tags({0x0112: 6}).orientation == 6


@pytest.mark.parametrize("text", ["1", "6", "", "x" * 99])
def test_only_heic_turns_itself(tmp_path: Path, text: str) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("original_orientation", text)
    draw_corner().save(tmp_path / "photo.png", pnginfo=texts, exif=make_exif(3).tobytes())
    photo = read(tmp_path / "photo.png")
    assert photo.metadata.orientation == 3 and find_fault(photo) == ""


def test_exif_that_leads_nowhere_is_neutral() -> None:
    for tag in (0x8769, 0x8825):
        exif = make_exif()
        raw = bytearray(exif.tobytes())
        entry = raw.index(tag.to_bytes(2, "big" if raw[6:8] == b"MM" else "little"), 6)
        raw[entry + 8 : entry + 12] = b"\xff\xff\xff\xf0"
        loaded = Image.Exif()
        loaded.load(bytes(raw))
        assert read_metadata(loaded).camera == "Maker One"
        assert (read_metadata(loaded).taken_at is None) == (tag == 0x8769)


def test_no_mutation_of_exif_raises_or_leaves_its_range(tmp_path: Path) -> None:
    random, exif = Random(5), make_exif(6).tobytes()
    assert_near(read_metadata(store(make_exif())), WRITTEN)
    seen = set()
    for _ in range(1500):
        loaded = Image.Exif()
        raw = b"Exif\0\0" + mutate(exif.removeprefix(b"Exif\0\0"), exif, random)
        try:
            loaded.load(raw)
        except Exception:  # Pillow's own error, which decoding an image catches: tested below
            continue
        metadata = read_metadata(loaded)
        seen.add(metadata)
        image = Image.new("RGB", (1, 1))
        assert find_fault(Photo(ImageFile("x.jpg", 1, 1), image=image, metadata=metadata)) == ""
    assert len(seen) > 50


@pytest.mark.parametrize("exif", [b"", b"MM\0*", b"II*\0\xff\xff\xff\xff", b"nothing of the kind"])
def test_a_photo_survives_exif_that_cannot_be_loaded(tmp_path: Path, exif: bytes) -> None:
    draw_corner().save(tmp_path / "photo.jpg", exif=b"Exif\0\0" + exif)
    photo = read(tmp_path / "photo.jpg")
    assert (photo.error, photo.metadata) == ("", NO_METADATA)
