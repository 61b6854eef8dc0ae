"""Formats images as lines: each path opens from the current folder, and no name breaks its line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from indexer.paths import show_path, unescape_path
from indexer.roots import Root, join_url

from .gallery import Hit

Form = Literal["lines", "paths", "null", "json"]


def format_hits(hits: Sequence[Hit], root: Root, form: Form) -> str:
    """Format hits in their order, each with its line ending; null and json keep the bytes of a name."""
    if form == "json":
        return "".join(json.dumps(fields) + "\n" for fields in _describe_hits(hits, root))
    paths = [_write_path(hit, root) for hit in hits]
    if form == "null":
        return "".join(f"{path}\0" for path in paths)
    scores = [f"{hit.score:.4f}\t" if form == "lines" else "" for hit in hits]
    return "".join(f"{score}{show_path(path)}\n" for score, path in zip(scores, paths, strict=True))


def format_answer(query: str, hits: Sequence[Hit], root: Root, form: Form) -> str:
    """Format the hits of one query among several: one JSON object, else lines ended by an empty record."""
    if form == "json":
        return json.dumps({"query": query, "hits": _describe_hits(hits, root)}) + "\n"
    return format_hits(hits, root, form) + ("\0" if form == "null" else "\n")


def _describe_hits(hits: Sequence[Hit], root: Root) -> list[dict[str, Any]]:
    return [
        {
            "rank": rank,
            "score": round(hit.score, 6),
            "path": _write_path(hit, root),
            "id": hit.id,
            "width": hit.width,
            "height": hit.height,
        }
        for rank, hit in enumerate(hits, 1)
    ]


def _write_path(hit: Hit, root: Root) -> str:
    """The path or URL of a hit, with the bytes of its name (surrogateescape)."""
    name = unescape_path(hit.path)
    return join_url(root, name) if isinstance(root, str) else write_from_here(root / name)


def format_step(action: str, stored_path: str, as_json: bool) -> str:
    """Format one step of a dry run, with its line ending; the path is relative to the root."""
    path = unescape_path(stored_path)
    return (
        json.dumps({"action": action, "path": path}) if as_json else f"{action}\t{show_path(path)}"
    ) + "\n"


def write_from_here(path: Path) -> str:
    """A path that opens from the current folder: relative if it lies below it, else absolute."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the current folder was removed: nothing lies below it
        return str(path)
    text = str(path.relative_to(here) if path.is_relative_to(here) else path)
    return f"./{text}" if text.startswith("-") else text  # else the next command takes it for an option
