"""Which images a search is about: those below a folder, those taken in some time, or all."""

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoders.base import QueryError
from indexer.manifest import Manifest, locate_root
from indexer.table import read_newest_rows

from .find_image import list_spellings

_DATE = re.compile(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?", re.ASCII)


class Filter(NamedTuple):
    """What an image has to be; as it is, it may be any.

    under: a folder or an archive, its path from here or below the root. since, until: from when, and before
    when, it was taken by the camera's own clock; an image of which that is not known is none of them.
    """

    under: str | Path = ""
    since: datetime | None = None
    until: datetime | None = None


ALL = Filter()


def make_filter(under: str | None, since: str | None, until: str | None) -> Filter:
    """From what was typed, where None is no condition; the last day of `until` counts."""
    if under == "":  # as of an unset variable: it is no wish for all
        raise QueryError("the folder to search is empty: name one, or leave --under out")
    begin, end = (None if text is None else parse_date(text) for text in (since, until))
    return Filter(under or "", begin and begin[0], end and end[1])


def parse_date(text: str) -> tuple[datetime, datetime]:
    """When a year, a month or a day begins, and when the next does; QueryError for anything else."""
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
            f"{text!r} is no date: give a year, a month or a day, such as 2019, 2019-06 or 2019-06-15"
        ) from None


def select_ids(index_dir: Path, manifest: Manifest, wanted: Filter) -> NDArray[np.int64]:
    """The ids of the images that a filter lets through, growing; QueryError where no image lies so."""
    rows = read_newest_rows(index_dir, manifest, ["id", "path", "status", "taken_at"])
    rows = rows.filter(pc.equal(rows["status"], "ok"))
    if wanted.under:
        root = locate_root(manifest, index_dir)
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
    """Which paths lie below the first of these folders that has any."""
    for folder in folders:
        below = pc.starts_with(paths, "" if folder == "." else f"{folder.removesuffix('/')}/")
        if pc.any(below).as_py():
            break
    return below
