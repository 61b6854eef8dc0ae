"""When, where and with which camera a photo was taken, read from EXIF that may contain anything.

Tag numbers are those of Exif 2.32 (CIPA DC-008). A field that is absent, broken or out of range gets its
default: nothing here raises.
"""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple, TypeGuard

from PIL import Image

LONGEST_TEXT = 100
_MAKE, _MODEL, _ORIENTATION = 0x010F, 0x0110, 0x0112
_CAMERA_IFD, _GPS_IFD = 0x8769, 0x8825
_TAKEN_AT, _DIGITIZED_AT, _LENS = 0x9003, 0x9004, 0xA434
_LATITUDE, _LONGITUDE = (1, 2), (3, 4)  # tags of the hemisphere, and of degrees, minutes and seconds


class Metadata(NamedTuple):
    """One photo's columns from EXIF.

    taken_at: local time as the camera wrote it, without a time zone. camera, lens: at most 100 printable
    characters, "" if unknown. latitude, longitude: degrees, WGS 84, both or neither. orientation: 1..8, as
    stored; 1 if unknown.
    """

    taken_at: datetime | None = None
    camera: str = ""
    lens: str = ""
    latitude: float | None = None
    longitude: float | None = None
    orientation: int = 1


NO_METADATA = Metadata()


def read_metadata(exif: Image.Exif) -> Metadata:
    """Read the EXIF fields; any that is missing or invalid keeps its default."""
    camera, place = _read_ifd(exif, _CAMERA_IFD), _read_ifd(exif, _GPS_IFD)
    latitude = _read_degrees(place, *_LATITUDE, "NS", 90.0)
    longitude = _read_degrees(place, *_LONGITUDE, "EW", 180.0)
    known = latitude is not None and longitude is not None
    return Metadata(
        taken_at=_read_time(camera, _TAKEN_AT) or _read_time(camera, _DIGITIZED_AT),
        camera=_name_camera(_read_text(exif, _MAKE), _read_text(exif, _MODEL)),
        lens=_read_text(camera, _LENS),
        latitude=latitude if known else None,
        longitude=longitude if known else None,
        orientation=read_orientation(exif),
    )


def read_orientation(exif: Mapping[int, Any]) -> int:
    """The EXIF orientation: 1..8, and 1 if it is missing or invalid."""
    value = _read_tag(exif, _ORIENTATION)
    return value if is_orientation(value) else 1


def is_orientation(value: object) -> TypeGuard[int]:
    """Whether a value is one of the eight orientations of EXIF."""
    return isinstance(value, int) and 1 <= value <= 8


def _read_ifd(exif: Image.Exif, tag: int) -> Mapping[int, Any]:
    try:
        return exif.get_ifd(tag)
    except Exception:  # an offset out of bounds, an unknown type, a cycle
        return {}


def _read_tag(tags: Mapping[int, Any], tag: int) -> Any:
    try:
        return tags.get(tag)
    except Exception:  # Pillow decodes a tag only when it is accessed
        return None


def _read_text(tags: Mapping[int, Any], tag: int) -> str:
    text = _read_tag(tags, tag)
    if not isinstance(text, str):
        return ""
    printable = "".join(letter for letter in text[: 4 * LONGEST_TEXT] if letter.isprintable())
    return printable[:LONGEST_TEXT].strip()


def _name_camera(make: str, model: str) -> str:
    """Make and model in one string; many model names already begin with the make."""
    repeated = model.lower().startswith(make.lower())
    return (model if repeated else f"{make} {model}").strip()[:LONGEST_TEXT]


def _read_time(tags: Mapping[int, Any], tag: int) -> datetime | None:
    text = _read_text(tags, tag)
    if not text:  # most photos; `strptime` is slow to fail
        return None
    try:
        return datetime.strptime(text[:19], "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None


def _read_degrees(
    tags: Mapping[int, Any], hemisphere_tag: int, angle_tag: int, hemispheres: str, limit: float
) -> float | None:
    """Degrees, negative in the second hemisphere; None if the hemisphere is missing or the angle invalid."""
    hemisphere = _read_text(tags, hemisphere_tag).upper()
    if hemisphere not in tuple(hemispheres):
        return None
    try:
        degrees, minutes, seconds = (float(part) for part in _read_tag(tags, angle_tag))
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    angle = degrees + minutes / 60 + seconds / 3600
    if not (math.isfinite(angle) and 0 <= angle <= limit):
        return None
    return -angle if hemisphere == hemispheres[1] else angle
