"""Resolves what a user typed for an image to an image of the index."""

import os
from functools import reduce
from pathlib import Path

import pyarrow.compute as pc

from encoders.base import QueryError
from indexer.paths import escape_path, show_path, unescape_path
from indexer.roots import Root, join_url
from indexer.table import EmbeddingTable


def find_image(table: EmbeddingTable, image: str | Path | int) -> int:
    """The id of the image that `image` names; QueryError if it names none, or several.

    image: an id; else a path from the current folder, a path below the root, or the end of exactly one path,
    each in its raw form or as `search` shows it.
    """
    image = str(image)
    if not image:
        raise QueryError("the name of the image is empty: give its path, the end of its path, or its id")
    if image.isdecimal() and len(image) < 19:
        return _check_id(table, int(image))
    exact = find_path(table, image)
    if exact is not None:
        return exact
    ends = [pc.ends_with(table.files["path"], f"/{escape_path(name)}") for name in _list_names(image)]
    found = table.files.filter(reduce(pc.or_, ends))
    matches = found["path"].to_pylist()
    if len(matches) > 1:
        examples = " and ".join(show_path(path) for path in matches[:2])
        raise QueryError(f"{image} may be {len(matches)} images, such as {examples}: give more of the path")
    if not matches:
        raise QueryError(
            f"the index of {table.root} has no image {image}: see `fwd2bot search --json` for paths and ids"
        )
    return int(found["id"][0].as_py())


def find_path(table: EmbeddingTable, image: str) -> int | None:
    """The id of the image with this path, from the current folder or below the root, or None."""
    for path in (path for name in _list_names(image) for path in list_spellings(table.root, name)):
        place = pc.index(table.files["path"], path).as_py()
        if place >= 0:
            return int(table.ids[place])
    return None


def _list_names(image: str) -> list[str]:
    """The name as typed and, if it may be as `search` shows it, the name that it stands for."""
    shown = unescape_path(image)
    return [image] if "\0" in shown or shown == image else [image, shown]  # no file has a NUL in its name


def _check_id(table: EmbeddingTable, image_id: int) -> int:
    if image_id not in table.ids:
        raise QueryError(
            f"the index of {table.root} has no image with the id {image_id}: see `fwd2bot search --json`"
        )
    return image_id


def list_spellings(root: Root, image: str) -> list[str]:
    """The stored paths that a name may mean, likeliest first."""
    if isinstance(root, str):
        return [escape_path(image.removeprefix(join_url(root, "")))]
    path = Path(image)
    as_typed = Path(os.path.normpath(path.absolute()))  # a path through a link that leads out of the root
    here = (path.parent.resolve() / path.name, as_typed)
    from_here = [place.relative_to(root) for place in here if place.is_relative_to(root)]
    below_root = Path(os.path.normpath(path))
    return [escape_path(spelling.as_posix()) for spelling in (*from_here, below_root)]
