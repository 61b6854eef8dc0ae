"""Restricts a search to images below a folder, or taken in a range of dates."""

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoders.base import QueryError
from indexer.manifest import Manifest
from indexer.roots import locate_root
from indexer.table import read_newest_rows

from .find_image import list_spellings

_DATE = re.compile(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?", re.ASCII)


class Filter(NamedTuple):
    """Conditions that an image must meet; by default, all images do.

    under: a folder or an archive, by its path from the current folder or below the root. since, until: taken
    at or after `since`, and before `until`, by the camera's own clock; an image without that date fails both.
    """

    under: str | Path = ""
    since: datetime | None = None
    until: datetime | None = None


ALL = Filter()


def make_filter(under: str | None, since: str | None, until: str | None) -> Filter:
    """Make a filter from typed values, where None is no condition; `until` includes its last day."""
    if under == "":  # as from an unset shell variable: not a request for all images
        raise QueryError("the folder to search is empty: name one, or leave --under out")
    begin, end = (None if text is None else parse_date(text) for text in (since, until))
    return Filter(under or "", begin and begin[0], end and end[1])


def parse_date(text: str) -> tuple[datetime, datetime]:
    """The start of a year, month or day, and the start of the next one; QueryError for anything else."""
    found = _DATE.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        year, month, day = (int(part) if part else None for part in found.groups())
        begin = datetime(year or 0, month or 1, day or 1)
        longest = timedelta(days=1 if day else 31 if month else 366)
        end = begin + longest
        return begin, end if day else end.replace(day=1) if month else end.replace(month=1, day=1)
    except (ValueError, OverflowError):
        raise QueryError(
            f"{text!r} is not a date: give a year, a month or a day, such as 2019, 2019-06 or 2019-06-15"
        ) from None


def select_ids(index_dir: Path, manifest: Manifest, wanted: Filter) -> NDArray[np.int64]:
    """The ids of the images that pass a filter, ascending; QueryError if no image is below `under`."""
    rows = read_newest_rows(index_dir, manifest, ["id", "path", "status", "taken_at"])
    rows = rows.filter(pc.equal(rows["status"], "ok"))
    if wanted.under:
        root = locate_root(manifest.root, index_dir)
        rows = rows.filter(_lie_below(rows["path"], list_spellings(root, str(wanted.under))))
        if not len(rows):
            raise QueryError(
                f"the index of {root} has no image below {wanted.under}: name a folder or an archive of it"
            )
    if wanted.since is not None:
        rows = rows.filter(pc.greater_equal(rows["taken_at"], pa.scalar(wanted.since, pa.timestamp("us"))))
    if wanted.until is not None:
        rows = rows.filter(pc.less(rows["taken_at"], pa.scalar(wanted.until, pa.timestamp("us"))))
    ids: NDArray[np.int64] = rows["id"].to_numpy()
    return ids


def _lie_below(paths: pa.ChunkedArray, folders: list[str]) -> pa.ChunkedArray:
    """Mask of the paths below the first of these folders that has any; all False if none has."""
    for folder in folders:
        below = pc.starts_with(paths, "" if folder == "." else f"{folder.removesuffix('/')}/")
        if pc.any(below).as_py():
            break
    return below
