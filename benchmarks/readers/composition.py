"""What the readers of compositionality sets return, and how most of them read records."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.readers.base import read_json
from encoders.base import DatasetError

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


class Picture(NamedTuple):
    """A photo, or the part of it in a box."""

    path: Path
    box: Box | None = None


@dataclass(frozen=True)
class Composition:
    """Captions, of which the first `true` are true of the first picture, and the others false.

    `kind` is the part of the set that it counts towards, or "" if it only counts towards the whole.
    """

    pictures: tuple[Picture, ...]
    captions: tuple[str, ...]
    true: int
    kind: str


def read_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The records of a JSON list, or of an object with a record under each key, each with its location."""
    data = read_json(path)
    records = list(data.values()) if isinstance(data, dict) else data
    if not isinstance(records, list) or not records or not all(isinstance(each, dict) for each in records):
        raise DatasetError(
            f"{path} is of another form: a list of records, or an object of them, is expected."
        )
    return [(f"record {number} of {path}", record) for number, record in enumerate(records)]


def find_files(place: Path, names: Sequence[str]) -> list[Path]:
    """One file, or all published files of a folder; raises DatasetError if one of them is missing."""
    if not place.is_dir():
        return [place]
    absent = [name for name in names if not (place / name).is_file()]
    if absent:
        raise DatasetError(
            f"{place} holds {len(names) - len(absent)} of the {len(names)} published files and not "
            f"{', '.join(absent)}: add what is missing, or name one file."
        )
    return [place / name for name in names]
