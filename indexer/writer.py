"""Rows to parts: the one who appends to an index, commits often, and tidies up.

A commit is a part and the manifest that names it. What a killed run had not committed leaves no trace but a
file that no manifest names, which the next run removes.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from encoders.base import ImageEmbeddings, IndexDamaged, IndexNotFound

from .durable import TEMPORARY_SUFFIX, replace_durably
from .faiss_file import save_faiss
from .faiss_refresh import refresh_faiss
from .manifest import FAISS_NAME, PART_NAME, PARTS_FOLDER, Manifest, PartRecord, read_manifest, write_manifest
from .parts import (
    FileRow,
    build_schema,
    describe_part,
    encode_rows,
    open_part_writer,
    read_groups,
    write_part,
)
from .table import EmbeddingTable

ROWS_PER_COMMIT = 1024
SECONDS_PER_COMMIT = 5.0
ROWS_PER_MERGED_PART = 8192


class IndexWriter:
    """Appends rows to the index of `manifest`, replaced at every commit; the caller holds the lock."""

    def __init__(self, index_dir: Path, manifest: Manifest) -> None:
        self.index_dir = index_dir
        self.manifest = manifest
        self._waiting: list[pa.Table] = []
        self._last_commit = time.monotonic()

    def append(self, rows: Sequence[FileRow], embeddings: ImageEmbeddings | None) -> None:
        """Add rows, and commit when enough of them or enough time has gathered."""
        if rows:
            first_id = self.manifest.next_id + self._count_waiting()
            self._waiting.append(encode_rows(self.manifest, first_id, rows, embeddings))
        overdue = time.monotonic() - self._last_commit >= SECONDS_PER_COMMIT
        if overdue or self._count_waiting() >= ROWS_PER_COMMIT:
            self.commit()

    def commit(self) -> None:
        """Write the rows that wait as a part, and the manifest that names it."""
        if self._waiting:
            part = write_part(self.index_dir, self._name_part(), self._waiting)
            self._replace_manifest(replace(self.manifest, parts=(*self.manifest.parts, part)))
            self._waiting = []
        self._last_commit = time.monotonic()

    def merge_parts(self) -> None:
        """Join neighbours too small to stand alone, so that many small runs do not slow down the opening."""
        merged: list[PartRecord] = []
        for group in _group_small_parts(self.manifest.parts):
            merged.append(group[0] if len(group) == 1 else self._merge_group(group))
        if len(merged) < len(self.manifest.parts):
            self._replace_manifest(replace(self.manifest, parts=tuple(merged)))

    def refresh_faiss(self) -> None:
        """Write a FAISS file of the images there are now, from the last one where that is less work."""
        index = refresh_faiss(self.index_dir, self.manifest, EmbeddingTable.open(self.index_dir).ids)
        number = _find_last_number(self.index_dir, FAISS_NAME) + 1
        path = self.index_dir / f"index-{number:06d}.faiss"
        record = save_faiss(index, path, self.manifest.next_id)
        self._replace_manifest(replace(self.manifest, faiss=record))

    def _merge_group(self, group: Sequence[PartRecord]) -> PartRecord:
        path = self.index_dir / PARTS_FOLDER / self._name_part()
        with replace_durably(path) as stream:
            self._copy_groups(group, stream)
        return describe_part(path, sum(part.rows for part in group), group[0].first_id)

    def _copy_groups(self, group: Sequence[PartRecord], target: BinaryIO) -> None:
        """Copy row group by row group: the tokens of thousands of images need not fit the memory."""
        with open_part_writer(target, build_schema(self.manifest)) as writer:
            for part in group:
                for table in read_groups(self.index_dir, self.manifest, part):
                    writer.write_table(table)

    def _replace_manifest(self, manifest: Manifest) -> None:
        self.manifest = write_manifest(self.index_dir, manifest)

    def _count_waiting(self) -> int:
        return sum(len(table) for table in self._waiting)

    def _name_part(self) -> str:
        return f"part-{_find_last_number(self.index_dir / PARTS_FOLDER, PART_NAME) + 1:06d}.parquet"


def remove_orphans(index_dir: Path) -> None:
    """Delete files the manifest does not name: left by a killed run, or replaced by the last one.

    Called as a run begins and not as it ends, so that whoever reads while it ends still finds what it
    replaced.
    """
    try:
        manifest = read_manifest(index_dir)
        named = {part.name for part in manifest.parts} | {manifest.faiss.name if manifest.faiss else ""}
    except IndexNotFound:
        named = set()
    except IndexDamaged:  # about to be refused or rebuilt: nothing may be deleted on its word
        return
    for folder, pattern in ((index_dir / PARTS_FOLDER, PART_NAME), (index_dir, FAISS_NAME)):
        for path in folder.glob("*"):
            if pattern.fullmatch(path.name.removesuffix(TEMPORARY_SUFFIX)) and path.name not in named:
                path.unlink(missing_ok=True)


def _find_last_number(folder: Path, pattern: re.Pattern[str]) -> int:
    found = (pattern.fullmatch(path.name) for path in folder.glob("*"))
    return max((int(match[1]) for match in found if match), default=0)


def _group_small_parts(parts: Sequence[PartRecord]) -> list[list[PartRecord]]:
    """Split parts into neighbours that together stay within one merged part."""
    groups: list[list[PartRecord]] = []
    for part in parts:
        if groups and sum(other.rows for other in groups[-1]) + part.rows <= ROWS_PER_MERGED_PART:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups
