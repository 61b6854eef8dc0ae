"""Finds an index, as git finds its folder, and the model to index with."""

from pathlib import Path

from encoders.base import (
    DEFAULT_ENCODER,
    LVLM_PREFIX,
    SENTENCE_PREFIX,
    IndexDamaged,
    IndexFailure,
    IndexNotFound,
)
from indexer.manifest import MANIFEST_NAME, read_manifest
from indexer.roots import Root, resolve_root

INDEX_FOLDER = ".fwd2bot"


def find_index(given: str | Path | None = None, start: Path | None = None) -> Path:
    """The index folder: `given` or the one inside it, else the nearest `.fwd2bot` from `start` upwards.

    start: None for the current folder. Raises IndexNotFound.
    """
    if given is not None:
        given = Path(given)
        for folder in (given, given / INDEX_FOLDER):
            if (folder / MANIFEST_NAME).is_file():
                return folder
        inside = f"`fwd2bot index {given}` of the images in it, or " if given.is_dir() else ""
        raise IndexNotFound(
            f"no index at {given}: make one with {inside}`fwd2bot index DIR --index {given}` of those in DIR"
        )
    start = start or Path.cwd()
    for folder in (start, *start.parents):
        if (folder / INDEX_FOLDER / MANIFEST_NAME).is_file():
            return folder / INDEX_FOLDER
    raise IndexNotFound(
        f"no index in {start} or above: make one with `fwd2bot index DIR`, or give --index PATH"
    )


def place_index(root: Root, given: Path | None = None) -> Path:
    """Where the index of a folder goes: `given`, which must not be that folder; else hidden inside it."""
    if given is not None and given.resolve() == resolve_root(root):
        raise IndexFailure(
            f"{given} is the folder of the images, among which no index goes: "
            f"leave out --index for {given / INDEX_FOLDER}, or name another place"
        )
    if given is not None:
        return given
    if isinstance(root, str):
        raise IndexNotFound(f"{root} is a URL and holds no index: give `--index PATH`")
    return root / INDEX_FOLDER


def choose_model(index_dir: Path, given: str | None, rebuild: bool) -> str:
    """The name of the model to index with: the one given, else the index's own, else the default.

    A model folder is named by its absolute path, so that the index finds it again from anywhere. Raises
    IndexDamaged if the manifest cannot be read, unless it is about to be rebuilt.
    """
    if given is not None:
        return _resolve_model(given)
    try:
        return read_manifest(index_dir).encoder.name
    except IndexNotFound:
        return DEFAULT_ENCODER
    except IndexDamaged:
        if not rebuild:
            raise
        return DEFAULT_ENCODER


def _resolve_model(name: str) -> str:
    """The name with an absolute path, if what follows its prefix is a folder; else unchanged."""
    prefix = next((prefix for prefix in (LVLM_PREFIX, SENTENCE_PREFIX) if name.startswith(prefix)), "")
    place = name.removeprefix(prefix)
    folder = Path(place).expanduser()
    return f"{prefix}{folder.resolve()}" if name != DEFAULT_ENCODER and place and folder.is_dir() else name
