"""The listing of a source, in columns: some 50 bytes a file, where Python objects would take 240."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .images import ImageFile
from .observer import SILENT, Observer

_SCHEMA = pa.schema([("path", pa.large_string()), ("size", pa.int64()), ("mtime_ns", pa.int64())])
_ROWS_AT_ONCE = 4096


class FileList(Sequence[ImageFile]):
    """Image files sorted by path. `table` has a column for each field of ImageFile."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[ImageFile]:
        for batch in self.table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            yield from map(ImageFile, *(column.to_pylist() for column in batch.columns))

    @overload
    def __getitem__(self, place: int) -> ImageFile: ...
    @overload
    def __getitem__(self, place: slice) -> "FileList": ...
    def __getitem__(self, place: int | slice) -> "ImageFile | FileList":
        """One file, or a FileList for a slice."""
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        row = range(len(self))[place]
        return ImageFile(*(column[row].as_py() for column in self.table.columns))

    def take(self, places: NDArray[np.int64]) -> "FileList":
        """The files at these positions."""
        return FileList(self.table.take(places))


class FoundImages(NamedTuple):
    """What a source lists: image files sorted by path, and (path, reason) pairs for what was left out.

    unreadable: folders and archives that could not be listed in full, and files that could not be examined,
    so that it is unknown what they hold.
    refused: what was found and left out on purpose.
    """

    files: FileList
    unreadable: list[tuple[str, str]]
    refused: list[tuple[str, str]]


class FileCollector:
    """Collects files, in any order, into a FileList; the observer is told how many more there are."""

    def __init__(self, observer: Observer = SILENT) -> None:
        self._observer = observer
        self._waiting: list[ImageFile] = []
        self._tables = [_SCHEMA.empty_table()]

    def append(self, file: ImageFile) -> None:
        """Add one file."""
        self._waiting.append(file)
        if len(self._waiting) == _ROWS_AT_ONCE:
            self._store()

    def extend(self, files: Iterable[ImageFile]) -> None:
        """Add several files."""
        for file in files:
            self.append(file)

    def sort(self) -> FileList:
        """All files added so far, sorted by path."""
        if self._waiting:
            self._store()
        table = pa.concat_tables(self._tables)
        return FileList(table.take(pc.sort_indices(table["path"])))

    def _store(self) -> None:
        columns = [list(values) for values in zip(*self._waiting, strict=True)]
        self._tables.append(pa.table(columns, schema=_SCHEMA))
        self._observer.advance(len(self._waiting))
        self._waiting = []
