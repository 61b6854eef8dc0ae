"""Shared by the readers of annotation files: captioned images, untrusted files, and missing photos.

Names that lead out of the images' folder are rejected. A photo may be in a .tar or .zip, which is then
treated as a folder: `photos.tar/0001.jpg`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from encoders.base import DatasetError
from indexer.archives import find_archive, list_archive, open_member

_NAMES_SHOWN = 3


@dataclass(frozen=True)
class CaptionedImage:
    """One picture and its human captions; `split` is "" if the annotation file has no splits."""

    path: Path
    captions: tuple[str, ...]
    split: str


def join_below(images_dir: Path, parts: Sequence[str], where: str) -> Path:
    """Join names from an annotation file to the images' folder; raises DatasetError if they lead outside."""
    for part in parts:
        path = PurePosixPath(part)
        # A backslash or a colon could lead elsewhere on Windows.
        if path.is_absolute() or ".." in path.parts or any(sign in part for sign in "\\:\0"):
            raise DatasetError(f"{where} names {part!r}, which is not a plain path below the images' folder.")
    return images_dir.joinpath(*parts)


def open_photo(path: Path) -> BinaryIO:
    """Open a photo, possibly in an archive; raises OSError if it is missing, anything if it is damaged."""
    found = None if path.is_file() else _find_archive(path)
    return path.open("rb") if found is None else open_member(*found)


def is_there(path: Path) -> bool:
    """Whether a file exists, possibly in an archive."""
    if path.is_file():
        return True
    found = _find_archive(path)
    return found is not None and found[1] in list_archive(found[0]).members


def _find_archive(path: Path) -> tuple[Path, str] | None:
    root = Path(path.anchor)
    return find_archive(root, path.relative_to(root).as_posix())


def find_missing(paths: Sequence[Path], images_dir: Path, allow_missing: bool) -> set[Path]:
    """The missing photos; raises DatasetError if any is missing and that is not allowed, or if all are."""
    missing = [path for path in dict.fromkeys(paths) if not is_there(path)]
    count = len(set(paths))
    if missing and not (allow_missing and len(missing) < count):
        names = ", ".join(path.name for path in missing[:_NAMES_SHOWN])
        names += ", ..." if len(missing) > _NAMES_SHOWN else ""
        remedy = (
            "allow missing photos (--allow-missing) to go on without them"
            if len(missing) < count
            else "is this the photos' folder?"
        )
        raise DatasetError(f"{len(missing)} of {count} photos are not in {images_dir} ({names}): {remedy}")
    return set(missing)


def keep_present(
    images: Sequence[CaptionedImage], images_dir: Path, allow_missing: bool
) -> list[CaptionedImage]:
    """The images whose files exist; raises DatasetError as `find_missing` does."""
    missing = find_missing([image.path for image in images], images_dir, allow_missing)
    return [image for image in images if image.path not in missing]


def clean_captions(captions: Sequence[str], where: str) -> tuple[str, ...]:
    """The non-blank captions, stripped; raises DatasetError if there are none."""
    cleaned = tuple(caption.strip() for caption in captions if caption.strip())
    if not cleaned:
        raise DatasetError(f"{where} has no caption with words in it.")
    return cleaned


def read_text_file(path: Path) -> str:
    """Read a whole annotation file as UTF-8; raises DatasetError if that fails."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DatasetError(f"There is no annotation file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as an annotation file: {error}.") from error


def read_json(path: Path) -> Any:
    """Read and parse a JSON annotation file; raises DatasetError if that fails."""
    return parse_json(read_text_file(path), str(path))


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The location, for error messages, and parsed JSON of each non-blank line of a file."""
    for number, line in enumerate(read_text_file(path).split("\n"), start=1):  # JSON may contain U+2028
        if line.strip():
            where = f"line {number} of {path}"
            yield where, parse_json(line, where)


def parse_json(text: str, where: str) -> Any:
    """Parse JSON; raises DatasetError if it is invalid."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where} is not JSON: {error}.") from error


def require_text(record: Any, key: str, where: str) -> str:
    """A field of a record; raises DatasetError unless it is non-blank text."""
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, str) or not value.strip():
        found = "absent" if value is None else repr(value)[:100]
        raise DatasetError(f'{where} is of another form: "{key}" should be text and is {found}.')
    return value
