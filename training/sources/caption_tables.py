"""Captions in a Parquet or JSON lines table, with one row per picture; pictures are in a folder.

The needed columns of a Parquet table are held in memory as Arrow, not as Python objects, and take about as
many bytes as their texts. For JSON lines only an index is held.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from encoders.base import DatasetError
from training.data_settings import CaptionTableSettings
from training.sources.base import Sample, draw_captions
from training.sources.pictures import locate_picture, open_picture
from training.sources.records import RecordFile


class CaptionTableSource:
    """One source row per table row. See Source."""

    pictured = True

    def __init__(self, settings: CaptionTableSettings, folder: Path) -> None:
        self.settings = settings
        self._images = folder / settings.images
        self._table = _open_table(folder / settings.table, settings)

    def __len__(self) -> int:
        return len(self._table)

    def read_captions(self, row: int) -> Sequence[str]:
        """See Source."""
        return self._list_captions(self._table.read(row))

    def draw_sample(self, row: int, random: Random) -> Sample:
        """See Source."""
        record = self._table.read(row)
        return draw_captions(self._list_captions(record), random)._replace(
            negatives=_list_all_texts(record, self.settings.negative_columns),
            picture=self._locate_picture(record),
        )

    def load_picture(self, row: int, side: int) -> Image.Image:
        """See Source."""
        return open_picture(self._locate_picture(self._table.read(row)), side)

    def describe_row(self, row: int) -> str:
        """See Source."""
        return f"row {row} of {self.settings.table}"

    def _list_captions(self, record: Mapping[str, Any]) -> list[str]:
        captions = _list_all_texts(record, self.settings.caption_columns)
        if not captions:
            raise DatasetError("it has no caption with words in it")
        return captions

    def _locate_picture(self, record: Mapping[str, Any]) -> Path:
        return locate_picture(self._images, record, self.settings.image_column)


class _Table(Protocol):
    def __len__(self) -> int: ...

    def read(self, row: int) -> Mapping[str, Any]: ...


class _ParquetTable:
    def __init__(self, path: Path, columns: list[str]) -> None:
        try:
            missing = set(columns) - set(pq.read_schema(path).names)
            if missing:
                raise DatasetError(f"{path} has no column {', '.join(sorted(missing))}")
            self._table = pq.read_table(path, columns=columns)
        except FileNotFoundError:
            raise DatasetError(f"There is no caption table {path}.") from None
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{path} cannot be read as a Parquet table: {error}") from error
        if not len(self):
            raise DatasetError(f"{path} holds no rows")

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def read(self, row: int) -> Mapping[str, Any]:
        try:
            return {name: self._table.column(name)[row].as_py() for name in self._table.column_names}
        except UnicodeDecodeError as error:
            raise DatasetError(f"its text is no UTF-8: {error}") from error


def _open_table(path: Path, settings: CaptionTableSettings) -> _Table:
    if path.suffix == ".parquet":
        columns = [settings.image_column, *settings.caption_columns, *settings.negative_columns]
        return _ParquetTable(path, columns)
    if path.suffix == ".jsonl":
        return RecordFile(path)
    raise DatasetError(f"{path} is not a caption table: a .parquet or a .jsonl is expected")


def _list_all_texts(record: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [text for name in names for text in _list_texts(record, name)]


def _list_texts(record: Mapping[str, Any], name: str) -> list[str]:
    """The non-blank texts of a column; may be empty."""
    value = record.get(name)
    texts = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in texts):
        raise DatasetError(f'its "{name}" should be text and is {value!r:.100}')
    return [text.strip() for text in texts if text.strip()]
