"""Teachers' embeddings of the pictures and texts of a training set, as `training.teach` writes them.

    DIR/pictures.parquet    source, row, embedding
    DIR/texts.parquet       text, embedding

Embeddings are float16 and of unit length. Those of several teachers are concatenated, each divided by the
square root of the number of teachers, so that the dot product of two rows is the mean of their cosines.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.base import DatasetError

PICTURES_FILE, TEXTS_FILE = "pictures.parquet", "texts.parquet"
PICTURE_COLUMNS = pa.schema([("source", pa.string()), ("row", pa.int64())])
TEXT_COLUMNS = pa.schema([("text", pa.string())])


class Guides(NamedTuple):
    """Teachers' embeddings of one rank's rows: float32 (sources, dim), (targets, dim), 0 where missing."""

    sources: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Guides":
        """The same on another device."""
        return Guides(self.sources.to(device), self.targets.to(device))


class GuideTable:
    """Every embedding of a folder that `training.teach` wrote, held in memory."""

    def __init__(self, folder: Path, first_ids: Mapping[str, int]) -> None:
        """first_ids: id of each source's first row, by name. Raises DatasetError if a file cannot be used."""
        pictures, self._pictures = _read_table(folder / PICTURES_FILE, PICTURE_COLUMNS)
        texts, self._texts = _read_table(folder / TEXTS_FILE, TEXT_COLUMNS)
        widths = self._pictures.shape[1], self._texts.shape[1]
        if widths[0] != widths[1]:
            raise DatasetError(
                f"In {folder} embeddings of pictures have {widths[0]} values and those of texts {widths[1]}: "
                "write both again with training.teach"
            )
        names, rows = pictures["source"].to_pylist(), pictures["row"].to_pylist()
        self._places = {
            first_ids[name] + row: place
            for place, (name, row) in enumerate(zip(names, rows, strict=True))
            if name in first_ids
        }
        self._text_places = {text: place for place, text in enumerate(texts["text"].to_pylist())}

    def find_pictures(self, ids: Sequence[int]) -> Tensor:
        """Look up pictures by row id: float32 (ids, dim), zeros for those that no teacher saw."""
        return _take_rows(self._pictures, [self._places.get(each) for each in ids])

    def find_texts(self, texts: Sequence[str]) -> Tensor:
        """Look up texts by their wording: float32 (texts, dim), zeros for those that no teacher read."""
        return _take_rows(self._texts, [self._text_places.get(text) for text in texts])


@contextmanager
def write_table(path: Path, columns: pa.Schema, dim: int) -> Iterator[pq.ParquetWriter]:
    """A writer for a table of `columns` plus embeddings; the file appears at `path` only once complete."""
    schema = columns.append(pa.field("embedding", pa.list_(pa.float16(), dim)))
    temporary = path.with_suffix(".tmp")
    with pq.ParquetWriter(temporary, schema, use_dictionary=False) as writer:  # embeddings hardly repeat
        yield writer
    temporary.replace(path)


def make_batch(
    writer: pq.ParquetWriter, values: Sequence[Sequence[object]], embeddings: NDArray[np.float32]
) -> pa.RecordBatch:
    """Rows of a table, from one sequence per column and the embeddings (rows, dim)."""
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(embeddings.astype(np.float16).ravel()), embeddings.shape[1]
    )
    return pa.record_batch([*map(pa.array, values), vectors], schema=writer.schema)


def _read_table(path: Path, columns: pa.Schema) -> tuple[pa.Table, NDArray[np.float16]]:
    try:
        table = pq.read_table(path)
        vectors = table["embedding"].combine_chunks()
        missing = [field.name for field in columns if field not in table.schema]
        if missing or not pa.types.is_fixed_size_list(vectors.type) or vectors.null_count:
            raise DatasetError(f"{path} is not a table of training.teach: name the folder that it wrote")
        values = vectors.flatten().to_numpy().astype(np.float16, copy=False)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DatasetError(
            f"{path} cannot be read ({error}): write the teachers' embeddings with training.teach"
        ) from error
    return table, values.reshape(len(table), vectors.type.list_size)


def _take_rows(vectors: NDArray[np.float16], places: Sequence[int | None]) -> Tensor:
    taken = np.zeros((len(places), vectors.shape[1]), dtype=np.float32)
    for row, place in enumerate(places):
        if place is not None:
            taken[row] = vectors[place]
    return torch.from_numpy(taken)
