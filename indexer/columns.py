"""The columns of a part: the schema, and the conversion of rows to columns and back.

`embedding` and `summary` are null in rows without an image: those skipped or deleted. `summary` holds the
bytes of (k, width) int8 or float16 values in row-major order, and `summary_scale` the k scales of int8.
(Lists of int8 were tried: Parquet widens them to int32, which made parts 1.4 times larger and 7 times slower
to read.) docs/index-format.md explains every column for readers that use other tools.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.base import FloatArray, ImageEmbeddings

from .manifest import Manifest
from .metadata import NO_METADATA, Metadata
from .quantize import dequantize_summaries, quantize_summaries

LARGEST_SIDE = 2**31 - 1  # the largest int32


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
    metadata: Metadata = NO_METADATA


_FILE_FIELDS = [
    pa.field("path", pa.string(), nullable=False),
    pa.field("size", pa.int64(), nullable=False),
    pa.field("mtime_ns", pa.int64(), nullable=False),
    pa.field("digest", pa.string(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string(), nullable=False),
    pa.field("taken_at", pa.timestamp("us")),
    pa.field("camera", pa.string(), nullable=False),
    pa.field("lens", pa.string(), nullable=False),
    pa.field("latitude", pa.float64()),
    pa.field("longitude", pa.float64()),
    pa.field("orientation", pa.int8(), nullable=False),
]


def build_schema(manifest: Manifest) -> pa.Schema:
    """The schema of this index's parts, with the model that made them in its metadata."""
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
    return pa.list_(pa.field("element", value), size)  # the name under which Parquet returns it


def encode_rows(
    manifest: Manifest, first_id: int, rows: Sequence[FileRow], embeddings: ImageEmbeddings | None
) -> pa.Table:
    """Turn rows into the columns of a part; the j-th row with status ok takes the j-th embedding."""
    schema = build_schema(manifest)
    present = np.array([row.status == "ok" for row in rows], dtype=bool)
    columns = [pa.array(np.arange(first_id, first_id + len(rows)), pa.int64())]
    cells = [(*row[:-1], *row.metadata) for row in rows]
    for field, values in zip(_FILE_FIELDS, zip(*cells, strict=True), strict=True):
        columns.append(pa.array(values, field.type))
    vectors = embeddings.vectors if embeddings else np.zeros((0, manifest.encoder.dim), np.float32)
    columns.append(_encode_vectors(vectors.astype(np.float16), present, schema.field("embedding").type))
    if manifest.encoder.summary_shape is not None:
        columns += _encode_summaries(manifest, embeddings, present, schema)
    return pa.Table.from_arrays(columns, schema=schema)


def _encode_vectors(values: NDArray[np.generic], present: NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    """Spread values (ok rows, size) over all rows, null where a row has none."""
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
        largest = np.finfo(np.float16).max  # beyond it, an outlier would become infinite
        return [_encode_bytes(summaries.clip(-largest, largest).astype(np.float16), present, schema)]
    levels, scales = quantize_summaries(summaries)
    scale_type = schema.field("summary_scale").type
    return [_encode_bytes(levels, present, schema), _encode_vectors(scales, present, scale_type)]


def _encode_bytes(values: NDArray[np.generic], present: NDArray[np.bool_], schema: pa.Schema) -> pa.Array:
    rows = iter(values)
    cells = [next(rows).tobytes() if is_image else None for is_image in present]
    return pa.array(cells, schema.field("summary").type)


def replace_columns(table: pa.Table, schema: pa.Schema, changes: dict[str, pa.Array]) -> pa.Table:
    """The table with some columns replaced and the rest as they are, under `schema`."""
    columns = [changes.get(name, table[name]) for name in schema.names]
    return pa.Table.from_arrays(columns, schema=schema)


def decode_vectors(column: pa.ChunkedArray, dim: int) -> NDArray[np.float16]:
    """The `embedding` column without its nulls: float16 (n, dim)."""
    values: NDArray[np.float16] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(-1, dim)


def decode_summaries(manifest: Manifest, table: pa.Table) -> FloatArray:
    """The summaries of rows: float32 (n, k, width); ValueError if any is missing or not finite."""
    shape = manifest.encoder.summary_shape
    assert shape is not None
    if any(table[name].null_count for name in ("summary", "summary_scale") if name in table.column_names):
        raise ValueError("it holds an image without summary tokens")
    stored = np.dtype(np.int8 if manifest.tokens == "int8" else np.float16)
    joined = b"".join(table["summary"].to_pylist())
    values = np.frombuffer(joined, stored).reshape(-1, *shape)
    if manifest.tokens == "int8":
        scales = table["summary_scale"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore", invalid="ignore"):
            values = dequantize_summaries(values, scales.reshape(-1, shape[0]))
    if not np.isfinite(values).all():
        raise ValueError("it holds summary tokens that are not numbers")
    return values.astype(np.float32, copy=False)
