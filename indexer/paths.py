r"""How a file name becomes a string that Parquet can hold and a line can show, and back without loss.

A name on disk is bytes; the `path` column is UTF-8. Each byte that is no UTF-8, and the backslash itself, is
stored as `\xNN`, so every backslash in a stored path begins an escape and any other name is stored as it is.
"""

import os
import re
from pathlib import Path

_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")
# What ends a line, commands a terminal, or has it write backwards, so that a name seems to be another.
_BREAKS_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def escape_path(path: str) -> str:
    """Turn a path as `os.scandir` gives it into the stored form."""
    raw = path.replace("\\", r"\x5c").encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")


def unescape_path(stored: str) -> str:
    """Turn a stored path back into one that opens."""
    raw = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), stored.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")


def leads_out(stored: str) -> bool:
    """Whether a stored path, taken below a folder, would open what lies outside: no index of ours has one.

    A NUL ends a name: what follows it in `search -0` is a name of its own.
    """
    name = unescape_path(stored)
    path = Path(name)
    return bool(path.anchor) or ".." in path.parts or "\0" in name


def show_path(path: str | Path) -> str:
    """Write a path that may hold anything as one line of valid UTF-8."""
    return show_line(escape_path(os.fspath(path)))


def show_line(text: str) -> str:
    """Write a text that may hold anything as one line, which tells a terminal nothing but letters."""
    return _BREAKS_A_LINE.sub(_escape_character, text)


def _escape_character(found: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in found[0].encode("utf-8"))
