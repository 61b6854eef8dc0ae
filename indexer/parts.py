"""One Parquet part: its schema, how rows become columns, and reading it back with every suspicion.

A part is an ordinary Parquet file. Null `embedding` and `summary` mark a row that is no image: skipped, or
deleted. `summary` holds the bytes of (k, width) int8 or float16 values, row after row; `summary_scale` the k
scales of int8. (Lists of int8 were tried: Parquet widens them to int32, which made parts 1.4 times larger and
7 times slower to read.)
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from encoders.base import FloatArray, ImageEmbeddings, IndexDamaged, QueryError

from .durable import digest_file, replace_durably
from .manifest import PARTS_FOLDER, REBUILD_REMEDY, Manifest, PartRecord
from .quantize import dequantize_summaries, quantize_summaries

ROWS_PER_GROUP = 128  # small, because reading one image's tokens reads its whole row group


class FileRow(NamedTuple):
    """What a part says about a file besides its embedding; `status` is ok, skipped or deleted."""

    path: str
    size: int
    mtime_ns: int
    digest: str
    width: int
    height: int
    status: str
    error: str


_FILE_FIELDS = [
    pa.field("path", pa.string(), nullable=False),
    pa.field("size", pa.int64(), nullable=False),
    pa.field("mtime_ns", pa.int64(), nullable=False),
    pa.field("digest", pa.string(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string(), nullable=False),
]


def build_schema(manifest: Manifest) -> pa.Schema:
    """The columns of this index's parts, with the model that made them in the metadata."""
    encoder = manifest.encoder
    fields = [pa.field("id", pa.int64(), nullable=False), *_FILE_FIELDS]
    fields.append(pa.field("embedding", _list_of(pa.float16(), encoder.dim)))
    metadata = {"encoder": encoder.name, "fingerprint": encoder.fingerprint, "dim": str(encoder.dim)}
    metadata["tokens"] = manifest.tokens
    if encoder.summary_shape is not None:
        count, width = encoder.summary_shape
        bytes_per_value = 1 if manifest.tokens == "int8" else 2
        fields.append(pa.field("summary", pa.binary(count * width * bytes_per_value)))
        if manifest.tokens == "int8":
            fields.append(pa.field("summary_scale", _list_of(pa.float32(), count)))
        metadata |= {"k": str(count), "width": str(width)}
    return pa.schema(fields, metadata=metadata)


def _list_of(value: pa.DataType, size: int) -> pa.DataType:
    return pa.list_(pa.field("element", value), size)  # the name that Parquet gives it back under


def encode_rows(
    manifest: Manifest, first_id: int, rows: Sequence[FileRow], embeddings: ImageEmbeddings | None
) -> pa.Table:
    """Turn rows into the columns of a part; the j-th row with status ok takes the j-th embedding."""
    schema = build_schema(manifest)
    present = np.array([row.status == "ok" for row in rows], dtype=bool)
    columns = [pa.array(np.arange(first_id, first_id + len(rows)), pa.int64())]
    for field, values in zip(_FILE_FIELDS, zip(*rows, strict=True), strict=True):
        columns.append(pa.array(values, field.type))
    vectors = embeddings.vectors if embeddings else np.zeros((0, manifest.encoder.dim), np.float32)
    columns.append(_encode_vectors(vectors.astype(np.float16), present, schema.field("embedding").type))
    if manifest.encoder.summary_shape is not None:
        columns += _encode_summaries(manifest, embeddings, present, schema)
    return pa.Table.from_arrays(columns, schema=schema)


def _encode_vectors(values: NDArray[np.generic], present: NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    """Spread (ok rows, size) over all rows, null where there is none."""
    spread = np.zeros((len(present), values.shape[1]), values.dtype)
    spread[present] = values
    return pa.FixedSizeListArray.from_arrays(pa.array(spread.ravel()), type=kind, mask=pa.array(~present))


def _encode_summaries(
    manifest: Manifest, embeddings: ImageEmbeddings | None, present: NDArray[np.bool_], schema: pa.Schema
) -> list[pa.Array]:
    shape = manifest.encoder.summary_shape
    assert shape is not None
    summaries = np.zeros((0, *shape), np.float32)
    if embeddings is not None and embeddings.summaries is not None:
        summaries = embeddings.summaries
    if manifest.tokens == "float16":
        return [_encode_bytes(summaries.astype(np.float16), present, schema)]
    levels, scales = quantize_summaries(summaries)
    scale_type = schema.field("summary_scale").type
    return [_encode_bytes(levels, present, schema), _encode_vectors(scales, present, scale_type)]


def _encode_bytes(values: NDArray[np.generic], present: NDArray[np.bool_], schema: pa.Schema) -> pa.Array:
    rows = iter(values)
    cells = [next(rows).tobytes() if is_image else None for is_image in present]
    return pa.array(cells, schema.field("summary").type)


def decode_vectors(column: pa.ChunkedArray, dim: int) -> NDArray[np.float16]:
    """The `embedding` column without its nulls: float16 (n, dim)."""
    values: NDArray[np.float16] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(-1, dim)


def decode_summaries(manifest: Manifest, table: pa.Table) -> FloatArray:
    """The summaries of rows that all have one: float32 (n, k, width)."""
    shape = manifest.encoder.summary_shape
    assert shape is not None
    stored = np.dtype(np.int8 if manifest.tokens == "int8" else np.float16)
    joined = b"".join(table["summary"].to_pylist())
    values = np.frombuffer(joined, stored).reshape(-1, *shape)
    if manifest.tokens == "float16":
        return values.astype(np.float32)
    scales = table["summary_scale"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return dequantize_summaries(values, scales.reshape(-1, shape[0]))


def write_part(index_dir: Path, name: str, tables: Sequence[pa.Table]) -> PartRecord:
    """Write one part so that it is whole or absent, and describe it."""
    path = index_dir / PARTS_FOLDER / name
    path.parent.mkdir(exist_ok=True)
    with replace_durably(path) as stream, open_part_writer(stream, tables[0].schema) as writer:
        writer.write_table(pa.concat_tables(tables), row_group_size=ROWS_PER_GROUP)
    return describe_part(path, sum(len(table) for table in tables), int(tables[0]["id"][0].as_py()))


def open_part_writer(stream: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet writer with this project's settings; the checksums let a reader notice a flipped bit."""
    names = ["path", "digest", "status", "error"]
    return pq.ParquetWriter(
        stream,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=names,
        write_page_checksum=True,
    )


def describe_part(path: Path, rows: int, first_id: int) -> PartRecord:
    """The record of a finished part for the manifest."""
    return PartRecord(path.name, path.stat().st_size, digest_file(path), rows, first_id)


@contextmanager
def trust_nothing(path: Path) -> Iterator[None]:
    """Turn whatever reading a damaged part raises into IndexDamaged."""
    try:
        yield
    except FileNotFoundError:
        raise IndexDamaged(f"{path} is missing: {REBUILD_REMEDY}") from None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise IndexDamaged(f"{path} is damaged ({reason[:200]}): {REBUILD_REMEDY}") from None


@contextmanager
def open_part(index_dir: Path, manifest: Manifest, part: PartRecord) -> Iterator[pq.ParquetFile]:
    """Open a part that agrees with the manifest in size, schema, model and number of rows."""
    path = index_dir / PARTS_FOLDER / part.name
    with trust_nothing(path):
        size = path.stat().st_size
        if size != part.size:
            raise ValueError(f"{size} bytes where the manifest says {part.size}")
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            if not file.schema_arrow.equals(build_schema(manifest), check_metadata=True):
                raise ValueError("its columns or its model are not those of the manifest")
            if file.metadata.num_rows != part.rows:
                raise ValueError(f"{file.metadata.num_rows} rows where the manifest says {part.rows}")
            yield file


def read_columns(index_dir: Path, manifest: Manifest, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Read some columns of every part, one table a part, in order of ids."""
    for part in manifest.parts:
        with open_part(index_dir, manifest, part) as file:
            table = file.read(columns=list(columns))
        yield table


def read_groups(index_dir: Path, manifest: Manifest, part: PartRecord) -> Iterator[pa.Table]:
    """Read one part whole, a row group at a time."""
    with open_part(index_dir, manifest, part) as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number)


def read_rows(index_dir: Path, manifest: Manifest, ids: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Read the rows with these ids, in their order, touching only the row groups they lie in."""
    starts = [part.first_id for part in manifest.parts]
    by_part: dict[int, list[int]] = {}
    for row_id in sorted(set(ids)):
        if not 0 <= row_id < manifest.next_id:
            raise QueryError(f"no image has the id {row_id}: ids go from 0 to {manifest.next_id - 1}")
        by_part.setdefault(bisect_right(starts, row_id) - 1, []).append(row_id)
    tables = [build_schema(manifest).empty_table().select(["id", *columns])]
    for number, wanted in sorted(by_part.items()):
        part = manifest.parts[number]
        with open_part(index_dir, manifest, part) as file:
            tables.append(_read_positions(file, [row_id - part.first_id for row_id in wanted], columns))
    found = pa.concat_tables(tables)
    place = {row_id: index for index, row_id in enumerate(found["id"].to_pylist())}
    if any(row_id not in place for row_id in ids):
        raise IndexDamaged(f"{index_dir} has rows without the ids its manifest promises: {REBUILD_REMEDY}")
    return found.take(np.array([place[row_id] for row_id in ids], dtype=np.int64))


def _read_positions(file: pq.ParquetFile, positions: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Read rows by their place in the part, given in increasing order."""
    metadata = file.metadata
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
    groups = np.searchsorted(ends, positions, side="right")  # the row group of each position
    tables = []
    for group in np.unique(groups):
        start = int(ends[group - 1]) if group else 0
        table = file.read_row_group(int(group), columns=["id", *columns])
        tables.append(table.take([p - start for p, g in zip(positions, groups, strict=True) if g == group]))
    return pa.concat_tables(tables)
