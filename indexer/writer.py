"""Write rows as parts: append to an index, commit often, and clean up.

A commit is a part and then the manifest that names it. What a killed run had not committed leaves at most a
file that no manifest names, which the next run removes.
"""

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from encoders.base import ImageEmbeddings, IndexDamaged, IndexNotFound

from .columns import FileRow, build_schema, encode_rows, replace_columns
from .durable import TEMPORARY_SUFFIX
from .faiss_file import is_faiss_sound, save_faiss
from .faiss_refresh import refresh_faiss
from .manifest import FAISS_NAME, PART_NAME, PARTS_FOLDER, Manifest, PartRecord, read_manifest, write_manifest
from .observer import SILENT, Observer
from .parts import read_groups, read_rows, write_part
from .table import EmbeddingTable

ROWS_PER_COMMIT = 1024
SECONDS_PER_COMMIT = 5.0
ROWS_PER_PART = 8192
MOST_SMALL_PARTS = 8


class IndexWriter:
    """Appends rows to the index of `manifest`, replaced at every commit; the caller must hold the lock."""

    def __init__(self, index_dir: Path, manifest: Manifest) -> None:
        self.index_dir = index_dir
        self.manifest = manifest
        self._waiting: list[pa.Table] = []
        self._last_commit = time.monotonic()

    @property
    def next_id(self) -> int:
        """The id of the next row to be appended."""
        return self.manifest.next_id + self._count_waiting()

    def append(self, rows: Sequence[FileRow], embeddings: ImageEmbeddings | None) -> None:
        """Add rows, and commit when due; the j-th row with status ok takes the j-th embedding."""
        if rows:
            self._waiting.append(encode_rows(self.manifest, self.next_id, rows, embeddings))
        self._commit_in_time()

    def append_copies(self, rows: Sequence[FileRow], sources: Sequence[int]) -> None:
        """Add rows that copy all but id, path, size and mtime, bit for bit, from the rows with these ids."""
        if rows:
            schema = build_schema(self.manifest)
            changes = {
                "id": pa.array(np.arange(self.next_id, self.next_id + len(rows))),
                "path": pa.array([row.path for row in rows]),
                "size": pa.array([row.size for row in rows]),
                "mtime_ns": pa.array([row.mtime_ns for row in rows]),
            }
            self._waiting.append(replace_columns(self._read_rows(sources), schema, changes))
        self._commit_in_time()

    def append_table(self, table: pa.Table, paths: pa.ChunkedArray) -> None:
        """Add rows of an index with the same columns, under these paths and with new ids."""
        if len(table):
            ids = pa.array(np.arange(self.next_id, self.next_id + len(table)))
            changes = {"id": ids, "path": paths}
            self._waiting.append(replace_columns(table, build_schema(self.manifest), changes))
        self._commit_in_time()

    def commit(self) -> None:
        """Write the pending rows as a part, then the manifest that names it."""
        if self._waiting:
            part = self._write_part(self._waiting)
            parts, next_id = (*self.manifest.parts, part), self.next_id
            self._replace_manifest(replace(self.manifest, parts=parts, next_id=next_id))
            self._waiting = []
            self._join_small_parts()
        self._last_commit = time.monotonic()

    def refresh_faiss(self, observer: Observer = SILENT) -> None:
        """Write a FAISS file and name it in the manifest, unless the current one is sound and up to date."""
        if not self.manifest.parts or is_faiss_sound(self.index_dir, self.manifest):
            return
        living = EmbeddingTable.open(self.index_dir).ids
        index = refresh_faiss(self.index_dir, self.manifest, living, observer)
        number = _find_last_number(self.index_dir, FAISS_NAME) + 1
        record = save_faiss(index, self.index_dir / f"index-{number:06d}.faiss", self.manifest.next_id)
        self._replace_manifest(replace(self.manifest, faiss=record))

    def _commit_in_time(self) -> None:
        overdue = time.monotonic() - self._last_commit >= SECONDS_PER_COMMIT
        if overdue or self._count_waiting() >= ROWS_PER_COMMIT:
            self.commit()

    def _join_small_parts(self) -> None:
        """Join the newest small parts once there are many, or enough to fill one: many are slow to open."""
        small = _count_small_parts(self.manifest.parts)
        kept, tail = self.manifest.parts[: len(self.manifest.parts) - small], self.manifest.parts[-small:]
        full = sum(part.rows for part in tail) >= ROWS_PER_PART
        if small > 1 and (full or small >= MOST_SMALL_PARTS):
            groups = (read_groups(self.index_dir, self.manifest, part) for part in tail)
            joined = self._write_part(chain.from_iterable(groups))
            self._replace_manifest(replace(self.manifest, parts=(*kept, joined)))

    def _read_rows(self, ids: Sequence[int]) -> pa.Table:
        """Rows with all columns, in the order of `ids`, from the committed and the pending ones."""
        columns = build_schema(self.manifest).names[1:]
        committed = [row_id for row_id in ids if row_id < self.manifest.next_id]
        rows = pa.concat_tables(
            [read_rows(self.index_dir, self.manifest, committed, columns), *self._waiting]
        )
        places = {row_id: place for place, row_id in enumerate(rows["id"].to_pylist())}
        return rows.take([places[row_id] for row_id in ids])

    def _write_part(self, tables: Iterable[pa.Table]) -> PartRecord:
        name = name_next_part(self.index_dir)
        return write_part(self.index_dir, name, build_schema(self.manifest), tables)

    def _replace_manifest(self, manifest: Manifest) -> None:
        self.manifest = write_manifest(self.index_dir, manifest)

    def _count_waiting(self) -> int:
        return sum(len(table) for table in self._waiting)


def remove_orphans(index_dir: Path) -> None:
    """Delete files that the manifest does not name: left by a killed run, or replaced by the last one.

    Builds, merges and repairs call this when they begin, not when they end, so that a concurrent reader still
    finds the files they replaced.
    """
    try:
        manifest = read_manifest(index_dir)
        named = {part.name for part in manifest.parts} | {manifest.faiss.name if manifest.faiss else ""}
    except (IndexNotFound, IndexDamaged):  # a lost or damaged manifest must not decide what is deleted
        return
    for folder, pattern in ((index_dir / PARTS_FOLDER, PART_NAME), (index_dir, FAISS_NAME)):
        for path in list_files(folder):
            if pattern.fullmatch(path.name.removesuffix(TEMPORARY_SUFFIX)) and path.name not in named:
                path.unlink(missing_ok=True)


def name_next_part(index_dir: Path) -> str:
    """A part name that is not in use."""
    return f"part-{_find_last_number(index_dir / PARTS_FOLDER, PART_NAME) + 1:06d}.parquet"


def _find_last_number(folder: Path, pattern: re.Pattern[str]) -> int:
    found = (pattern.fullmatch(path.name) for path in list_files(folder))
    return max((int(match[1]) for match in found if match), default=0)


def list_files(folder: Path) -> list[Path]:
    """The entries of a folder, none if it does not exist; OSError if it cannot be listed."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _count_small_parts(parts: Sequence[PartRecord]) -> int:
    """How many of the last parts are not full, counted until together they fill one.

    After a compaction every part may be a little short of full; they should not all be joined.
    """
    small = rows = 0
    while small < len(parts) and parts[-1 - small].rows < ROWS_PER_PART and rows < ROWS_PER_PART:
        small += 1
        rows += parts[-small].rows
    return small
