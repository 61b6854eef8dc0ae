"""The files that fuzzing mutates: small intact ones of every kind that the indexer reads, many with EXIF."""

import struct
import tarfile
import zipfile
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

SIDE = 96
_NUMBERS = {"B": 1, "H": 3, "I": 4, "2I": 5, "2i": 10}  # struct format to TIFF type; text is type 2
_Tags = dict[int, tuple[str, tuple[int, ...]] | bytes]


def make_files() -> dict[str, bytes]:
    """One file per kind, by name; HEIC only if pillow_heif is installed."""
    pictures = _save_pictures(draw_picture()) | {
        "plain.dng": make_dng(),
        "preview.dng": make_dng(preview=SIDE),
    }
    return pictures | {
        "archive.zip": _pack_zip(pictures),
        "ustar.tar": _pack_tar(pictures, tarfile.USTAR_FORMAT),
        "pax.tar": _pack_tar(pictures, tarfile.PAX_FORMAT),
        "gnu.tar": _pack_tar(pictures, tarfile.GNU_FORMAT),
    }


def draw_picture(side: int = SIDE) -> Image.Image:
    """Smooth colours with noise, which no compressor finds trivial."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    noise = np.random.default_rng(0).normal(0, 6, (side, side))
    waves = [np.sin(6 * rows + phase) + np.cos(5 * columns * phase) for phase in (1, 2, 3)]
    pixels = np.stack(waves, axis=-1) * 60 + 128 + noise[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def make_exif(orientation: int = 1) -> Image.Exif:
    """EXIF as a camera writes it: make, model, orientation, date, lens and position."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Maker", "Maker One", orientation
    exif.get_ifd(0x8769).update({0x9003: "2021:07:08 09:10:11", 0xA434: "50mm f/1.8"})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 36.0), 3: "W", 4: (13.0, 24.0, 18.0)})
    return exif


def make_tiff_tags() -> TiffImagePlugin.ImageFileDirectory_v2:
    """The tags of `make_exif`, for Pillow's `tiffinfo`."""
    exif, tags = make_exif(), TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in exif.items():
        tags[tag] = value
    tags[0x8769], tags[0x8825] = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
    return tags


def _save_pictures(picture: Image.Image) -> dict[str, bytes]:
    exif, grey = make_exif(), picture.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    clear = picture.convert("RGBA")
    clear.putalpha(200)
    files = {
        "baseline.jpg": _save(picture, "JPEG", exif=exif),
        "progressive.jpg": _save(picture, "JPEG", exif=exif, progressive=True),
        "cmyk.jpg": _save(picture.convert("CMYK"), "JPEG"),
        "several.jpg": _save(picture, "MPO", exif=exif, frames=2),
        "colours.png": _save(picture, "PNG", exif=exif),
        "deep.png": _save(deep, "PNG"),
        "palette.png": _save(picture.quantize(16), "PNG", transparency=0),
        "clear.png": _save(clear, "PNG"),
        "named.png": _save(picture, "PNG", pnginfo=_name_texts()),
        "lossy.webp": _save(picture, "WEBP", exif=exif),
        "film.webp": _save(clear, "WEBP", exif=exif, lossless=True, frames=2),
        "film.gif": _save(picture, "GIF", frames=2),
        "plain.tif": _save(picture, "TIFF", tiffinfo=make_tiff_tags(), frames=2),
        "float.tif": _save(grey.convert("F"), "TIFF"),
        "colours.bmp": _save(picture, "BMP"),
        "palette.bmp": _save(picture.quantize(16), "BMP"),
        "boxed.jp2": _save(picture, "JPEG2000"),
        "bare.j2k": _save(picture, "JPEG2000", no_jp2=True),
        "photo.avif": _save(picture, "AVIF", exif=exif),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        files[f"{compression}.tif"] = _save(picture, "TIFF", compression=compression)
    return files | _save_heic(picture, exif)


def _name_texts() -> PngImagePlugin.PngInfo:
    """Texts with the names of metadata that decoders of other formats attach to an image."""
    texts = PngImagePlugin.PngInfo()
    for name in ("original_orientation", "exif", "icc_profile", "photoshop", "transparency"):
        texts.add_text(name, "1")
    return texts


def _save_heic(picture: Image.Image, exif: Image.Exif) -> dict[str, bytes]:
    try:
        import pillow_heif
    except ImportError:
        return {}
    pillow_heif.register_heif_opener()
    return {"photo.heic": _save(picture, "HEIF", exif=exif.tobytes())}


def _save(picture: Image.Image, kind: str, frames: int = 0, **options: Any) -> bytes:
    """Encode a picture, followed by `frames` further frames."""
    stream = BytesIO()
    if frames:
        options |= {"save_all": True, "append_images": [picture.rotate(90 * n) for n in range(1, frames + 1)]}
    picture.copy().save(stream, kind, **options)  # a copy, because saving modifies the picture
    return stream.getvalue()


def make_dng(side: int = SIDE, orientation: int = 1, preview: int = 0) -> bytes:
    """A RAW file as cameras write it: a Bayer mosaic in a TIFF, and a JPEG with a side of `preview` pixels.

    Adobe's DNG 1.4, uncompressed 16 bits; no JPEG if `preview` is 0. The mosaic is sampled from
    `draw_picture`.
    """
    mosaic = _sample_mosaic(draw_picture(side))
    pixels = mosaic.astype("<u2").tobytes()
    jpeg = _save(draw_picture(preview), "JPEG") if preview else b""

    def lay_out(below: int, sensor: int, view: int) -> tuple[bytes, bytes]:
        camera = (
            _pack_ifd(_name_camera(orientation) | _describe_view(preview, view, len(jpeg), below), 8)
            if preview
            else b""
        )
        own = {} if preview else _name_camera(orientation)
        return camera, _pack_ifd(own | _describe_sensor(side, sensor, len(pixels)), 8 + len(camera))

    camera, sensor = lay_out(0, 0, 0)  # a first pass, to find the lengths
    start = 8 + len(camera) + len(sensor)
    camera, sensor = lay_out(8 + len(camera), start, start + len(pixels))
    return struct.pack("<2sHI", b"II", 42, 8) + camera + sensor + pixels + jpeg


def _sample_mosaic(picture: Image.Image) -> np.ndarray[Any, np.dtype[np.uint16]]:
    colours = np.asarray(picture).astype(np.uint16) * 128
    mosaic = colours[..., 1].copy()  # RGGB
    mosaic[0::2, 0::2], mosaic[1::2, 1::2] = colours[0::2, 0::2, 0], colours[1::2, 1::2, 2]
    return mosaic


def _name_camera(orientation: int) -> _Tags:
    return {
        0x010F: b"Maker\0",
        0x0110: b"Maker Raw\0",
        0x0112: ("H", (orientation,)),
        50706: ("B", (1, 4, 0, 0)),  # DNGVersion
        50708: b"Maker Raw\0",  # UniqueCameraModel
        50721: ("2i", (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1)),  # ColorMatrix1
        50728: ("2I", (1, 1, 1, 1, 1, 1)),  # AsShotNeutral
    }


def _describe_sensor(side: int, offset: int, length: int) -> _Tags:
    return {
        254: ("I", (0,)),
        **_describe_strip(side, offset, length, (16,)),
        259: ("H", (1,)),
        262: ("H", (32803,)),
        33421: ("H", (2, 2)),  # CFARepeatPatternDim
        33422: ("B", (0, 1, 1, 2)),  # CFAPattern
        50717: ("I", (32767,)),  # WhiteLevel
    }


def _describe_view(side: int, offset: int, length: int, sensor: int) -> _Tags:
    return {
        254: ("I", (1,)),
        **_describe_strip(side, offset, length, (8, 8, 8)),
        259: ("H", (7,)),
        262: ("H", (6,)),
        330: ("I", (sensor,)),
    }


def _describe_strip(side: int, offset: int, length: int, bits: tuple[int, ...]) -> _Tags:
    size: _Tags = {256: ("I", (side,)), 257: ("I", (side,)), 258: ("H", bits), 277: ("H", (len(bits),))}
    return {**size, 273: ("I", (offset,)), 278: ("I", (side,)), 279: ("I", (length,))}


def _pack_ifd(tags: _Tags, offset: int) -> bytes:
    """Encode a TIFF directory for position `offset`, followed by the values that do not fit into it."""
    entries, behind = b"", b""
    place = offset + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        letters, numbers = ("", ()) if isinstance(value, bytes) else value
        data = value if isinstance(value, bytes) else struct.pack(f"<{len(numbers)}{letters[-1]}", *numbers)
        count = len(data) if isinstance(value, bytes) else len(numbers) // (2 if len(letters) > 1 else 1)
        if len(data) > 4:
            data, behind = struct.pack("<I", place + len(behind)), behind + data + b"\0" * (len(data) % 2)
        entries += struct.pack("<HHI4s", tag, _NUMBERS.get(letters, 2), count, data)
    return struct.pack("<H", len(tags)) + entries + b"\0\0\0\0" + behind


def _pack_zip(files: Mapping[str, bytes]) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number, (name, content) in enumerate(files.items()):
            method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(f"below/{name}"), content, method)
    return stream.getvalue()


def _pack_tar(files: Mapping[str, bytes], kind: int) -> bytes:
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        for name, content in files.items():
            long = "" if kind == tarfile.USTAR_FORMAT else "ö" * 60  # needs the format's extended header
            entry = tarfile.TarInfo(f"below/{long}{name}")
            entry.size = len(content)
            archive.addfile(entry, BytesIO(content))
    return stream.getvalue()
