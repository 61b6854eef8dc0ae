"""Talking about an image from its stored tokens alone: the file may be gone."""

import os
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import pyarrow.compute as pc

from encoders.base import FloatArray, QueryError, Talker
from indexer.manifest import Root, join_url
from indexer.paths import escape_path, show_path, unescape_path
from indexer.table import EmbeddingTable

from .locate import find_index
from .query import clean_question
from .search import load_matching_reader, require_talker


def caption(index_dir: str | Path, image: str | Path | int) -> str:
    """Describe an image of the index, or of the index of a folder, named by path or id."""
    return _talk(index_dir, image, lambda talker, summaries: talker.caption(summaries))


def ask(index_dir: str | Path, image: str | Path | int, question: str) -> str:
    """Answer a question about an image, as `caption` describes it."""
    question = clean_question(question)
    return _talk(index_dir, image, lambda talker, summaries: talker.answer(summaries, question))


def _talk(
    index_dir: str | Path, image: str | Path | int, speak: Callable[[Talker, FloatArray], list[str]]
) -> str:
    table = EmbeddingTable.open(find_index(index_dir))
    summaries = table.read_summaries([find_image(table, image)])  # before the model, which takes seconds
    return speak(require_talker(load_matching_reader(table.manifest)), summaries)[0]


def find_image(table: EmbeddingTable, image: str | Path | int) -> int:
    """The id of the image that `image` names.

    An id; else a path from here, a path below the root, or the end of exactly one path; as it is, or as
    `search` shows it. QueryError otherwise.
    """
    image = str(image)
    if not image:
        raise QueryError("the name of the image is empty: give its path, the end of its path, or its id")
    if image.isdecimal() and len(image) < 19:
        return _check_id(table, int(image))
    paths, shown = table.files["path"], unescape_path(image)
    names = [image] if "\0" in shown or shown == image else [image, shown]  # no file has a NUL in its name
    for path in (path for name in names for path in _list_spellings(table.root, name)):
        place = pc.index(paths, path).as_py()
        if place >= 0:
            return int(table.ids[place])
    ends = [pc.ends_with(paths, f"/{escape_path(name)}") for name in names]
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


def _check_id(table: EmbeddingTable, image_id: int) -> int:
    if image_id not in table.ids:
        raise QueryError(
            f"the index of {table.root} has no image with the id {image_id}: see `fwd2bot search --json`"
        )
    return image_id


def _list_spellings(root: Root, image: str) -> list[str]:
    """The stored paths that a name may mean, likeliest first."""
    if isinstance(root, str):
        return [escape_path(image.removeprefix(join_url(root, "")))]
    path = Path(image)
    as_typed = Path(os.path.normpath(path.absolute()))  # through a link that leads out of the root
    here = (path.parent.resolve() / path.name, as_typed)
    from_here = [place.relative_to(root) for place in here if place.is_relative_to(root)]
    below_root = Path(os.path.normpath(path))
    return [escape_path(spelling.as_posix()) for spelling in (*from_here, below_root)]
