r"""File names to strings that Parquet can store and one line can show, and back without loss.

A name on disk is bytes; the `path` column is UTF-8. Each byte that is not valid UTF-8, and the backslash
itself, is stored as `\xNN`, so every backslash in a stored path begins an escape, and any other name is
stored unchanged.
"""

import os
import re
from pathlib import Path

_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")
# Characters that end a line, control a terminal, or reverse the text so that a name looks like another.
_BREAKS_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def escape_path(path: str) -> str:
    """Turn a path, as `os.scandir` gives it, into its stored form."""
    raw = path.replace("\\", r"\x5c").encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")


def unescape_path(stored: str) -> str:
    """Turn a stored path back into one that can be opened."""
    raw = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), stored.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")


def leads_out(stored: str) -> bool:
    """Whether a stored path, joined to a folder, could lead outside it; no path that fwd2bot stores does.

    A NUL counts as well: in the output of `search -0`, what follows it would be read as another path.
    """
    name = unescape_path(stored)
    path = Path(name)
    return bool(path.anchor) or ".." in path.parts or "\0" in name


def show_path(path: str | Path) -> str:
    """Format a path, whatever it contains, as one line of valid UTF-8."""
    return show_line(escape_path(os.fspath(path)))


def show_line(text: str) -> str:
    """Format a text, whatever it contains, as one line without terminal control characters."""
    return _BREAKS_A_LINE.sub(_escape_character, text)


def _escape_character(found: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in found[0].encode("utf-8"))
