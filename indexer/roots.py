"""The folder or URL that an index is of: its root, from which all its paths are relative.

as typed --name_root--> parsed --resolve_root--> absolute --relate_root--> as the manifest stores it
as stored --locate_root--> absolute
"""

import re
from pathlib import Path

from encoders.base import NothingToIndex

from .paths import escape_path, unescape_path

Root = Path | str  # a folder, or a URL such as s3://bucket/photos


def name_root(typed: Root) -> Root:
    """Parse the folder or URL that the user gave; NothingToIndex if empty, as an unset variable is."""
    if isinstance(typed, str) and not typed.removeprefix("file://"):
        raise NothingToIndex("the name of the folder is empty: name one, or `.` for the current one")
    return parse_root(typed)


def parse_root(named: Root) -> Root:
    """Turn a name into a folder (also for `file://`) or into a URL."""
    name = named.removeprefix("file://") if isinstance(named, str) else named
    return name if is_url(name) else Path(name)


def resolve_root(folder: Root) -> Root:
    """The absolute form of a folder or URL, the same from every current directory."""
    folder = parse_root(folder)
    if isinstance(folder, Path):
        return folder.resolve()
    scheme, _, place = folder.partition("://")
    if scheme == "memory":  # which has no host: a slash in front means nothing
        place = place.lstrip("/")
    return f"{scheme}://{place.rstrip('/')}"


def relate_root(root: Root, index_dir: Path) -> str:
    """A root as the manifest of this index stores it: `..` if the index lies directly in it."""
    root = resolve_root(root)
    return ".." if index_dir.resolve().parent == root else escape_path(str(root))


def locate_root(stored: str, index_dir: Path) -> Root:
    """The absolute folder or URL that the manifest of this index stores."""
    root = unescape_path(stored)
    return resolve_root(root if is_url(root) else index_dir / root)


def check_root(stored: str) -> str:
    """Return the stored root; ValueError unless it has the form that `relate_root` gives a folder or URL."""
    place = parse_root(unescape_path(stored))
    if "\0" in str(place) or not (stored == ".." or isinstance(place, str) or place.is_absolute()):
        raise ValueError(f"impossible root {stored!r}")
    return stored


def join_url(root: str, path: str) -> str:
    """The URL of a path below a root, which may be a bare scheme: `memory://`."""
    return f"{root.removesuffix('/')}/{path}"


def is_url(root: Root) -> bool:
    """Whether a root is an fsspec URL and not a folder."""
    return isinstance(root, str) and re.match(r"\w[^/]*://", root) is not None
