"""One Parquet part: written atomically, and read back without trusting it.

A part is an ordinary Parquet file (its columns: columns.py). The rows of a part are in order of their ids,
and so are the parts of an index, so a row is found by its id from the statistics that Parquet keeps of every
row group.
"""

import errno
import os
import stat
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from encoders.base import IndexDamaged, IndexFailure, QueryError

from .columns import build_schema
from .durable import digest_file, replace_durably
from .manifest import PARTS_FOLDER, REBUILD_REMEDY, Manifest, PartRecord

ROWS_AT_ONCE = 512
ROWS_PER_GROUP = 128  # small, because reading one image's tokens reads its whole row group
LONGEST_ROW = 1 << 15  # bytes of all strings of a row, besides its embedding and tokens
REPAIR_REMEDY = f"run `fwd2bot verify --repair` and index again, or {REBUILD_REMEDY}"
_ENCODINGS = {"PLAIN", "RLE", "RLE_DICTIONARY"}  # in all others, a value may build on the one before it


def write_part(index_dir: Path, name: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> PartRecord:
    """Write one part from tables with increasing ids, and return its record.

    The tables are consumed one by one: the tokens of thousands of images need not fit in memory.
    """
    path = index_dir / PARTS_FOLDER / name
    path.parent.mkdir(exist_ok=True)
    ids: list[int] = []
    rows = 0
    with replace_durably(path) as stream, _open_part_writer(stream, schema) as writer:
        for table in _regroup(tables):
            writer.write_table(table)
            rows += len(table)
            ids += [table["id"][0].as_py(), table["id"][-1].as_py()]
    return PartRecord(name, path.stat().st_size, digest_file(path), rows, ids[0], ids[-1])


def _open_part_writer(stream: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet writer with this project's settings; the checksums let a reader notice a flipped bit."""
    return pq.ParquetWriter(
        stream,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=["path", "digest", "status", "error", "camera", "lens"],
        write_page_checksum=True,
    )


def _regroup(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of ROWS_PER_GROUP; the last one may be shorter."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while (count := sum(map(len, waiting))) >= ROWS_PER_GROUP:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, ROWS_PER_GROUP)
            waiting = [joined.slice(ROWS_PER_GROUP)] if count > ROWS_PER_GROUP else []
    if waiting:
        yield pa.concat_tables(waiting)


@contextmanager
def trust_nothing(path: Path) -> Iterator[None]:
    """Turn whatever reading a damaged part raises into IndexDamaged.

    If the system cannot read the part, which may be sound, raise a plain IndexFailure instead.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise IndexDamaged(f"{path} is missing: {REPAIR_REMEDY}") from None
    except MemoryError:  # sizes are checked before anything is read, so the part is not at fault
        raise IndexFailure(f"{path} cannot be read (no memory left): make room and run it again") from None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and error.errno:  # when it reports damage, Arrow sets no errno
            reason = os.strerror(error.errno)
            raise IndexFailure(f"{path} cannot be read ({reason}): fix that and run it again") from None
        reason = " ".join(str(error).split())
        if os.strerror(errno.EAGAIN) in reason:  # Arrow could not start a thread
            raise IndexFailure(
                f"{path} cannot be read (no thread can be started): raise the limits "
                "(`ulimit -u`, `ulimit -v`) and run it again"
            ) from None
        raise IndexDamaged(f"{path} is damaged ({reason[:200]}): {REPAIR_REMEDY}") from None


@contextmanager
def open_part(index_dir: Path, manifest: Manifest, part: PartRecord) -> Iterator[pq.ParquetFile]:
    """Open a part; IndexDamaged unless its size, schema, model and number of rows match the manifest."""
    path = index_dir / PARTS_FOLDER / part.name
    with trust_nothing(path):
        size = require_regular(path)
        if size != part.size:
            raise ValueError(f"{size} bytes where the manifest says {part.size}")
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _require_agreement(file, path, manifest, part)
            yield file


def require_regular(path: Path) -> int:
    """The size of a part in bytes; ValueError if it is a pipe or the like, which would never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    return status.st_size


def _require_agreement(file: pq.ParquetFile, path: Path, manifest: Manifest, part: PartRecord) -> None:
    schema = build_schema(manifest)
    if not _leave_out_name(file.schema_arrow).equals(_leave_out_name(schema), check_metadata=True):
        raise ValueError("its columns or its model are not those of the manifest")
    if file.metadata.num_rows != part.rows:
        raise ValueError(f"{file.metadata.num_rows} rows where the manifest says {part.rows}")
    longest = 2 * (LONGEST_ROW + sum(_count_bytes(field.type) for field in schema))  # with Parquet's overhead
    words = [place for place, field in enumerate(schema) if pa.types.is_string(field.type)]
    wordy = list[int]()
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        if not 0 < group.num_rows <= ROWS_PER_GROUP:
            raise ValueError(f"{group.num_rows} rows in a group")
        if not 0 <= group.total_byte_size <= longest * group.num_rows:
            raise ValueError(f"{group.num_rows} rows of {group.total_byte_size} bytes")
        if sum(group.column(place).total_uncompressed_size for place in words) > LONGEST_ROW:
            wordy.append(number)
    if wordy:
        _require_few_words(path, file.metadata, wordy, words)


def _leave_out_name(schema: pa.Schema) -> pa.Schema:
    """A schema without the model's name, which changes when the model is moved: its fingerprint stays."""
    kept = {key: value for key, value in (schema.metadata or {}).items() if key != b"encoder"}
    return schema.with_metadata(kept)


def _require_few_words(
    path: Path, metadata: pq.FileMetaData, groups: Sequence[int], words: Sequence[int]
) -> None:
    """Refuse a part if the strings of a row group, once decoded, are too long for its rows.

    When encoded, rows with equal values share bytes, so the length is computed before anything is decoded.
    If all values together are no longer than one row may be, no row can be longer: most groups need no check.
    """
    names = [metadata.schema.column(place).path for place in words]
    with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=names) as file:
        for number in groups:
            group = metadata.row_group(number)
            if any(not _ENCODINGS.issuperset(group.column(place).encodings) for place in words):
                raise ValueError("its names are encoded as fwd2bot encodes none")
            table = file.read_row_group(number, columns=names, use_threads=False)
            size = sum(_measure_words(chunk) for column in table.columns for chunk in column.chunks)
            if size > LONGEST_ROW * group.num_rows:
                raise ValueError(f"{group.num_rows} rows of {size} bytes")


def _measure_words(words: pa.DictionaryArray) -> int:
    """Total bytes of the values, each counted as often as it occurs."""
    lengths = pc.binary_length(words.dictionary).to_numpy().astype(np.int64)
    return int(lengths[words.indices.to_numpy()].sum())


def _count_bytes(kind: pa.DataType) -> int:
    """Bytes of one value of a fixed-size type, 0 for a string."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _count_bytes(kind.value_type)
    return 0 if pa.types.is_string(kind) else int(kind.bit_width) // 8


def read_columns(index_dir: Path, manifest: Manifest, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Read some columns of all parts, in order of ids, in batches of at most ROWS_AT_ONCE rows."""
    for part in manifest.parts:
        rows = 0
        with open_part(index_dir, manifest, part) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(columns), use_threads=False):
                rows += len(batch)
                yield pa.Table.from_batches([batch])
            if rows != part.rows:  # a damaged page may end the iteration silently
                raise ValueError(f"{rows} rows where the manifest says {part.rows}")


def read_groups(index_dir: Path, manifest: Manifest, part: PartRecord) -> Iterator[pa.Table]:
    """Read one part in full, one row group at a time."""
    with open_part(index_dir, manifest, part) as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number, use_threads=False)


def read_rows(index_dir: Path, manifest: Manifest, ids: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Read `id` and some columns of the rows with these ids, in that order; QueryError if one is missing."""
    found = find_rows(index_dir, manifest, ids, columns)
    missing = set(ids).difference(found["id"].to_pylist())
    if missing:
        raise QueryError(
            f"no image has the id {min(missing)}: ids are below {manifest.next_id}, without those removed"
        )
    return found


def find_rows(index_dir: Path, manifest: Manifest, ids: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Like `read_rows`, but leaves out ids that are missing, and reads only the row groups it needs."""
    starts = [part.first_id for part in manifest.parts]
    by_part: dict[int, list[int]] = {}
    for row_id in sorted(set(ids)):
        number = bisect_right(starts, row_id) - 1
        if number >= 0 and row_id <= manifest.parts[number].last_id:
            by_part.setdefault(number, []).append(row_id)
    tables = [pa.Table.from_batches([], build_schema(manifest)).select(["id", *columns])]
    for number, wanted in by_part.items():
        with open_part(index_dir, manifest, manifest.parts[number]) as file:
            tables += _read_ids(file, manifest.parts[number], np.array(wanted), ["id", *columns])
    found = pa.concat_tables(tables)
    place = {row_id: index for index, row_id in enumerate(found["id"].to_pylist())}
    return found.take(_to_arrow(np.array([place[row_id] for row_id in ids if row_id in place], np.int64)))


def _read_ids(
    file: pq.ParquetFile, part: PartRecord, wanted: NDArray[np.int64], columns: Sequence[str]
) -> Iterator[pa.Table]:
    """Read the rows of one part that have these increasing ids."""
    starts = [_read_first_id(file, number) for number in range(file.num_row_groups)]
    # Otherwise rows could be missed silently.
    if starts[:1] != [part.first_id] or any(here >= there for here, there in pairwise(starts)):
        raise ValueError("its ids do not lie where the manifest says")
    cuts = np.searchsorted(wanted, [*starts, np.iinfo(np.int64).max])
    for number, (begin, end) in enumerate(pairwise(cuts)):
        if begin < end:
            table = file.read_row_group(number, columns=list(columns), use_threads=False)
            yield table.take(_to_arrow(np.flatnonzero(np.isin(table["id"].to_pylist(), wanted[begin:end]))))


def _to_arrow(places: NDArray[np.int64]) -> pa.Array:
    """An int64 array without `pa.array`, which imports pandas if installed: 0.2 s of a search."""
    return pa.Array.from_buffers(pa.int64(), len(places), [None, pa.py_buffer(places)])


def _read_first_id(file: pq.ParquetFile, group: int) -> int:
    statistics = file.metadata.row_group(group).column(0).statistics
    if statistics is None or not statistics.has_min_max:
        raise ValueError("it does not say where its ids lie")
    return int(statistics.min)
