"""Any table of images and captions: CSV, TSV, JSON lines or Parquet, with a row per image or per caption.

Columns are found by name: one of IMAGE_COLUMNS, one of CAPTION_COLUMNS, and optionally "split". A caption is
text or a list of texts (in CSV and TSV, JSON in a cell); rows of the same image are merged.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.readers.base import (
    CaptionedImage,
    clean_captions,
    join_below,
    read_json_lines,
    read_text_file,
)
from encoders.base import DatasetError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
IMAGE_COLUMNS = ("image", "filename", "file_name", "filepath", "image_path", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "raw")

Row = tuple[str, Mapping[str, Any]]  # its location, for error messages, and its cells


def parse_table(table_path: Path, images_dir: Path) -> list[CaptionedImage]:
    """Read all images with their captions, in the order in which they first occur."""
    captions: dict[tuple[Path, str], list[str]] = {}
    for where, row in _read_rows(table_path):
        image, caption = _find_column(row, IMAGE_COLUMNS, where), _find_column(row, CAPTION_COLUMNS, where)
        name, split = row[image], row.get("split") or ""
        if not isinstance(name, str) or not isinstance(split, str):
            raise DatasetError(f'{where} has no path of an image in its column "{image}": {name!r:.100}.')
        path = join_below(images_dir, [name], where)
        captions.setdefault((path, split), []).extend(_list_texts(row[caption], caption, where))
    if not captions:
        raise DatasetError(f"{table_path} holds no rows.")
    return [
        CaptionedImage(path, clean_captions(texts, f"{path.name} in {table_path}"), split)
        for (path, split), texts in captions.items()
    ]


def _read_rows(path: Path) -> Iterator[Row]:
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix == ".jsonl":
        return _read_lines(path)
    return _read_delimited(path, "\t" if path.suffix == ".tsv" else ",")


def _read_delimited(path: Path, delimiter: str) -> Iterator[Row]:
    reader = csv.DictReader(StringIO(read_text_file(path), newline=""), delimiter=delimiter)
    try:
        for row in reader:
            yield f"line {reader.line_num} of {path}", {name: _open_cell(name, row[name]) for name in row}
    except csv.Error as error:
        raise DatasetError(f"Line {reader.line_num} of {path} cannot be read: {error}.") from error


def _open_cell(name: str, cell: Any) -> Any:
    """The list in a caption cell that is JSON, as in Flickr30k's table; else the cell itself."""
    if name not in CAPTION_COLUMNS or not isinstance(cell, str) or not cell.startswith("["):
        return cell
    try:
        opened = json.loads(cell)
    except (ValueError, RecursionError):  # a caption that begins with a bracket
        return cell
    return opened if all(isinstance(text, str) for text in opened) else cell


def _read_lines(path: Path) -> Iterator[Row]:
    for where, row in read_json_lines(path):
        if not isinstance(row, dict):
            raise DatasetError(f'{where} is not of the form {{"image": "...", "caption": "..."}}.')
        yield where, row


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        known = {*IMAGE_COLUMNS, *CAPTION_COLUMNS, "split"}
        names = [name for name in pq.read_schema(path).names if name in known]
        rows = pq.read_table(path, columns=names).to_pylist()
    except FileNotFoundError:
        raise DatasetError(f"There is no annotation file {path}.") from None
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path} cannot be read as a Parquet table: {error}.") from error
    yield from ((f"row {number} of {path}", row) for number, row in enumerate(rows))


def _find_column(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    for name in names:
        if name in row:
            return name
    there = ", ".join(str(name) for name in row) or "none of these"
    raise DatasetError(f"{where} has no column {' or '.join(names)}, but {there}: rename one.")


def _list_texts(value: Any, column: str, where: str) -> list[str]:
    texts = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in texts):
        raise DatasetError(f'{where} has no text in its column "{column}": {value!r:.100}.')
    return texts
