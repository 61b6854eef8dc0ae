"""Finding an index, as git finds its folder."""

from pathlib import Path

from encoders.base import IndexNotFound
from indexer.manifest import MANIFEST_NAME

INDEX_FOLDER = ".fwd2bot"


def find_index(start: Path, given: Path | None = None) -> Path:
    """The index folder: `given` or the one inside it, else the nearest `.fwd2bot` from `start` upwards."""
    if given is not None:
        for folder in (given, given / INDEX_FOLDER):
            if (folder / MANIFEST_NAME).is_file():
                return folder
        raise IndexNotFound(f"no index at {given}: make one with `fwd2bot index DIR --index {given}`")
    for folder in (start, *start.parents):
        if (folder / INDEX_FOLDER / MANIFEST_NAME).is_file():
            return folder / INDEX_FOLDER
    raise IndexNotFound(
        f"no index in {start} or above: make one with `fwd2bot index DIR`, or give --index PATH"
    )
