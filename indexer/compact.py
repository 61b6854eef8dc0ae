"""Compaction: an index without its dead rows, those of files that have since changed, moved or gone.

Ids are kept, so the FAISS file and ids noted elsewhere remain valid. The new parts are written first, then
committed by one new manifest; a reader that has the old one open finds its rows in the new parts by id.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .columns import build_schema
from .lock import lock_index
from .manifest import Manifest, PartRecord, read_manifest, write_manifest
from .observer import SILENT, Observer
from .parts import read_groups, write_part
from .table import mark_members, read_newest_rows
from .writer import ROWS_PER_PART, name_next_part, remove_orphans


class CompactReport(NamedTuple):
    """What a compaction did: rows dropped, bytes freed, and how many parts there are now."""

    dropped: int
    freed: int
    parts: int


def compact_index(index_dir: str | Path, observer: Observer = SILENT) -> CompactReport:
    """Drop dead rows and join small parts; an index that is already compact is left unchanged."""
    index_dir = Path(index_dir)
    with lock_index(index_dir):
        remove_orphans(index_dir)
        before = read_manifest(index_dir)
        rows = read_newest_rows(index_dir, before, ["id", "status"])
        living = rows.filter(pc.not_equal(rows["status"], "deleted"))["id"].to_numpy()
        parts = tuple(_rewrite_parts(index_dir, before, living, observer))
        if parts != before.parts:
            write_manifest(index_dir, replace(before, parts=parts))
            remove_orphans(index_dir)
    return CompactReport(
        sum(part.rows for part in before.parts) - sum(part.rows for part in parts),
        sum(part.size for part in before.parts) - sum(part.size for part in parts),
        len(parts),
    )


def _rewrite_parts(
    index_dir: Path, manifest: Manifest, living: NDArray[np.int64], observer: Observer
) -> Iterator[PartRecord]:
    schema = build_schema(manifest)
    observer.begin("compacting", sum(part.rows for part in manifest.parts))
    for group in _group_parts(manifest.parts, living):
        if len(group) == 1 and _count_living(group[0], living) == group[0].rows:
            yield group[0]
        elif any(_count_living(part, living) for part in group):
            rows = _read_living(index_dir, manifest, group, living)
            yield write_part(index_dir, name_next_part(index_dir), schema, rows)
        observer.advance(sum(part.rows for part in group))


def _group_parts(parts: Sequence[PartRecord], living: NDArray[np.int64]) -> list[list[PartRecord]]:
    """Group adjacent parts whose living rows fit in one part."""
    groups: list[list[PartRecord]] = []
    room = 0
    for part in parts:
        count = _count_living(part, living)
        if groups and count <= room:
            groups[-1].append(part)
            room -= count
        else:
            groups.append([part])
            room = ROWS_PER_PART - count
    return groups


def _count_living(part: PartRecord, living: NDArray[np.int64]) -> int:
    first, last = np.searchsorted(living, [part.first_id, part.last_id + 1])
    return int(last - first)


def _read_living(
    index_dir: Path, manifest: Manifest, parts: Sequence[PartRecord], living: NDArray[np.int64]
) -> Iterator[pa.Table]:
    for part in parts:
        for table in read_groups(index_dir, manifest, part):
            rows = table.filter(pa.array(mark_members(table["id"], living)))
            if len(rows):
                yield rows
