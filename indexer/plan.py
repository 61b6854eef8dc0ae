"""What a run has to do: the files of a folder compared with the newest rows of its index."""

from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .decode import refuse_shape
from .file_list import FileList, FoundImages
from .manifest import Manifest
from .table import read_newest_rows

COLUMNS = ("path", "size", "mtime_ns", "width", "height", "status")


class BuildPlan(NamedTuple):
    """What a run has to do: read the `fresh` files and mark the `removed` paths as deleted.

    reused: images that have not changed. skipped_before: unchanged files that an earlier run skipped, plus
    what the listing left out.
    """

    fresh: FileList
    removed: list[str]
    reused: int
    skipped_before: int


def compare_files(
    found: FoundImages, index_dir: Path, manifest: Manifest | None, max_megapixels: float
) -> BuildPlan:
    """Compare the files on disk with the newest rows of the index; without a manifest every file is fresh."""
    left_out = len(found.unreadable) + len(found.refused)
    if manifest is None:
        return BuildPlan(found.files, [], 0, left_out)
    known = read_newest_rows(index_dir, manifest, COLUMNS)
    paths = found.files.table["path"]
    places = pc.index_in(paths, value_set=known["path"]).fill_null(-1).to_numpy()
    listed = np.flatnonzero(places >= 0)  # positions of the found files that the index knows
    unchanged = np.zeros(len(found.files), bool)
    rows = known.take(places[listed])
    unchanged[listed] = _mark_unchanged(found.files.take(listed), rows, max_megapixels)
    kept = known.take(places[unchanged])
    reused = pc.sum(pc.equal(kept["status"], "ok")).as_py() or 0
    fresh = found.files.take(np.flatnonzero(~unchanged))
    skipped_before = len(kept) - reused + left_out
    return BuildPlan(fresh, _list_removed(found, known, places[listed]), reused, skipped_before)


def _mark_unchanged(files: FileList, rows: pa.Table, max_megapixels: float) -> NDArray[np.bool_]:
    """Mask of the files that need not be read again; `rows` are their rows in the index, in this order."""
    listed, columns = files.table, ("size", "mtime_ns")
    same = np.all([listed[name].to_numpy() == rows[name].to_numpy() for name in columns], axis=0)
    deleted = pc.equal(rows["status"], "deleted").to_numpy()
    unchanged: NDArray[np.bool_] = same & ~deleted
    # A skipped row has a width and height only where these were the reason to skip it.
    refused = pc.and_(pc.equal(rows["status"], "skipped"), pc.greater(rows["width"], 0)).to_numpy()
    sides = (rows[name].filter(pa.array(refused)).to_pylist() for name in ("width", "height"))
    still = [refuse_shape(width, height, max_megapixels) != "" for width, height in zip(*sides, strict=True)]
    unchanged[refused] &= np.array(still, bool)
    return unchanged


def _list_removed(found: FoundImages, known: pa.Table, listed: NDArray[np.int64]) -> list[str]:
    """Paths that are gone, except those that are unreadable or lie below an unreadable folder or archive."""
    gone = pc.not_equal(known["status"], "deleted").to_numpy().copy()
    gone[listed] = False
    unseen = {path for path, _ in found.unreadable}
    paths = known["path"].filter(pa.array(gone)).to_pylist()
    return sorted(path for path in paths if not _lies_in(path, unseen))  # unseen is not gone


def _lies_in(path: str, places: Set[str]) -> bool:
    """Whether a path is one of `places`, or lies below one."""
    ends = (end for end, letter in enumerate(path) if letter == "/")
    return path in places or any(path[:end] in places for end in ends)
