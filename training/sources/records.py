"""Records of a large JSON file, read one at a time: only an index of byte offsets is held in memory.

A .jsonl file holds one record per line, any other file one list of records.
"""

import json
import mmap
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from encoders.base import DatasetError

_LARGEST_RECORD = 16 * 2**20  # bytes
# Everything up to the next bracket outside a string; possessive, so that it never backtracks.
_NEXT_BRACKET = re.compile(rb'(?:"(?:[^"\\]++|\\.)*+"|[^"\[\]{}]++)*+([\[\]{}])', re.DOTALL)


class RecordFile:
    """The records of one file, by number."""

    def __init__(self, path: Path) -> None:
        """Raises DatasetError if there is no such file, or no record in it."""
        self.path = path
        self._spans = array("q")  # byte offsets: start and end of each record
        for span in _find_spans(path):
            self._spans.extend(span)
        if not self._spans:
            raise DatasetError(
                f"{path} holds no records: a list of them, or one a line in a .jsonl, is expected"
            )

    def __len__(self) -> int:
        return len(self._spans) // 2

    def read(self, row: int) -> dict[str, Any]:
        """Read one record; raises DatasetError if it is too large, unreadable or not an object."""
        start, end = self._spans[2 * row : 2 * row + 2]
        if end - start > _LARGEST_RECORD:
            raise DatasetError(f"its record of {end - start} bytes is over the limit of {_LARGEST_RECORD}")
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                record = json.loads(file.read(end - start))
        except (OSError, ValueError, RecursionError) as error:
            raise DatasetError(f"its record cannot be read: {error}") from error
        if not isinstance(record, dict):
            raise DatasetError(f"its record is a {type(record).__name__} and not an object")
        return record


def _find_spans(path: Path) -> Iterator[tuple[int, int]]:
    try:
        with path.open("rb") as file:
            if not file.read(1):
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                yield from (_find_lines(text) if path.suffix == ".jsonl" else _find_items(text, path))
    except FileNotFoundError:
        raise DatasetError(f"There is no annotation file {path}.") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read as an annotation file: {error}") from error


def _find_lines(text: mmap.mmap) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        end = text.find(b"\n", start)
        end = len(text) if end < 0 else end
        if end - start > _LARGEST_RECORD or text[start:end].strip():
            yield start, end
        start = end + 1


def _find_items(text: mmap.mmap, path: Path) -> Iterator[tuple[int, int]]:
    """Byte spans of the objects in the outermost list."""
    if text[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"[":
        raise DatasetError(
            f"{path} is not a list of records, as LLaVA's form wants: [{{...}}, ...] is expected"
        )
    depth = start = 0
    for match in _NEXT_BRACKET.finditer(text):
        if match[1] in b"[{":
            depth += 1
            if depth == 2:
                start = match.start(1)
        else:
            depth -= 1
            if depth == 1:
                yield start, match.end(1)
