"""How an image is written on a line: a path that opens from here, in a line that nothing breaks."""

import json
from pathlib import Path
from typing import Literal

from indexer.manifest import Root
from indexer.paths import show_path, unescape_path

from .search import Hit

Form = Literal["lines", "paths", "null", "json"]


def format_hit(rank: int, hit: Hit, root: Root, form: Form) -> str:
    """One hit with its end of line; null and json keep the bytes of a name (surrogateescape)."""
    name = unescape_path(hit.path)
    path = f"{root}/{name}" if isinstance(root, str) else write_from_here(root / name)
    if form == "json":
        fields = {"rank": rank, "score": round(hit.score, 6), "path": path, "id": hit.id}
        fields |= {"width": hit.width, "height": hit.height}
        return json.dumps(fields) + "\n"
    if form == "null":
        return f"{path}\0"
    return f"{show_path(path)}\n" if form == "paths" else f"{hit.score:.4f}\t{show_path(path)}\n"


def format_step(action: str, stored_path: str, as_json: bool) -> str:
    """One step of a dry run with its end of line; the path is relative to the root."""
    path = unescape_path(stored_path)
    return (
        json.dumps({"action": action, "path": path}) if as_json else f"{action}\t{show_path(path)}"
    ) + "\n"


def write_from_here(path: Path) -> str:
    """A path as it opens from the current folder: relative where it lies below it, else absolute."""
    here = Path.cwd()
    text = str(path.relative_to(here) if path.is_relative_to(here) else path)
    return f"./{text}" if text.startswith("-") else text  # or the next command takes it for an option
