"""Finding an index, as git finds its folder, and the model it wants."""

from pathlib import Path

from encoders.base import IndexDamaged, IndexNotFound
from indexer.manifest import MANIFEST_NAME, read_manifest

INDEX_FOLDER = ".fwd2bot"
DEFAULT_MODEL = "tiny"


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


def read_model_name(index_dir: Path, rebuild: bool) -> str:
    """The model an index was made with, so that nobody repeats `--model`; else the default.

    IndexDamaged where the manifest cannot be read, unless it is about to be rebuilt.
    """
    try:
        return read_manifest(index_dir).encoder.name
    except IndexNotFound:
        return DEFAULT_MODEL
    except IndexDamaged:
        if not rebuild:
            raise
        return DEFAULT_MODEL
