"""The index as one table of images: all parts together, where the newest row of a path wins.

All columns are Arrow or numpy, so that ten million rows fit in a laptop's memory.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoders.base import CannotAnswer, FloatArray, IndexDamaged, IndexFailure, QueryError

from .columns import build_schema, decode_summaries, decode_vectors
from .manifest import EncoderRecord, Manifest, read_manifest
from .parts import read_columns, read_rows, trust_nothing
from .roots import locate_root

Read = TypeVar("Read")


def read_newest_rows(index_dir: Path, manifest: Manifest, columns: Sequence[str]) -> pa.Table:
    """Read `path` and some columns of the newest row of every path, in order of ids."""
    names = list(dict.fromkeys(["path", *columns]))
    rows = pa.concat_tables(
        [build_schema(manifest).empty_table().select(names), *read_columns(index_dir, manifest, names)]
    )
    # Arrow has no string array of over 2 GiB, as which it would take or encode the paths of a large index.
    rows = rows.set_column(0, "path", rows["path"].cast(pa.large_string()))
    return rows.filter(pa.array(_mark_last(rows["path"])))


def _mark_last(values: pa.ChunkedArray) -> NDArray[np.bool_]:
    """True at the last occurrence of each value."""
    marks = np.zeros(len(values), bool)
    chunks = values.dictionary_encode().chunks  # which share one dictionary
    if chunks:
        last = np.zeros(len(chunks[0].dictionary), np.int64)
        codes = np.concatenate([chunk.indices.to_numpy() for chunk in chunks])
        last[codes] = np.arange(len(codes))  # of repeated indices, numpy keeps the last
        marks[last] = True
    return marks


def read_images(index_dir: Path, manifest: Manifest) -> pa.Table:
    """Read `id` and `path` of the images in this manifest, in order of ids."""
    rows = read_newest_rows(index_dir, manifest, ["id", "path", "status"])
    return rows.filter(pc.equal(rows["status"], "ok")).select(["id", "path"])


class EmbeddingTable:
    """The images of an index: `ids` int64 (n,), increasing, and `paths`, one for each id.

    Paths are relative to `root`, in stored form. Everything else is read on demand.
    """

    def __init__(self, index_dir: Path, manifest: Manifest, files: pa.Table) -> None:
        self.index_dir = index_dir
        self.manifest = manifest
        self.root = locate_root(manifest.root, index_dir)
        self.files = files  # columns id and path
        self.ids: NDArray[np.int64] = files["id"].to_numpy()

    @classmethod
    def open(cls, index_dir: str | Path) -> "EmbeddingTable":
        """Open an index for reading, without a lock; IndexNotFound or IndexDamaged if it cannot be opened."""
        index_dir = Path(index_dir)
        read = partial(read_images, index_dir)
        return cls(index_dir, *read_following(index_dir, read_manifest(index_dir), read))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def encoder(self) -> EncoderRecord:
        """The model that made the index."""
        return self.manifest.encoder

    @cached_property
    def paths(self) -> list[str]:
        """The path of each image, in the order of `ids`."""
        paths: list[str] = self.files["path"].to_pylist()
        return paths

    @cached_property
    def vectors(self) -> NDArray[np.float16]:
        """Embeddings, float16 (n, dim), in the order of `ids`."""

        def read(manifest: Manifest) -> NDArray[np.float16]:
            vectors = np.empty((len(self), self.encoder.dim), np.float16)
            filled = 0
            for ids, block in read_vectors(self.index_dir, manifest, self.ids):
                vectors[filled : filled + len(ids)] = block
                filled += len(ids)
            self._require_all(filled)
            return vectors

        return self._read(read)

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read these columns of every image (None: all, including tokens), in the order of `ids`."""
        known = build_schema(self.manifest).names
        names = known if columns is None else list(columns)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise QueryError(f"{self.index_dir} has no column {unknown[0]}: choose of {', '.join(known)}")

        def read(manifest: Manifest) -> pa.Table:
            wanted = list(dict.fromkeys(["id", *names]))
            tables = [build_schema(manifest).empty_table().select(wanted)]
            for rows in read_columns(self.index_dir, manifest, wanted):
                tables.append(rows.filter(pa.array(mark_members(rows["id"], self.ids))).select(wanted))
            found = pa.concat_tables(tables)
            self._require_all(len(found))
            return found.select(names)

        return self._read(read)

    def read_embeddings(self, ids: Sequence[int]) -> FloatArray:
        """Read the embeddings of these images: float32 (n, dim)."""
        rows = self._read(lambda manifest: read_rows(self.index_dir, manifest, ids, ["embedding"]))
        with trust_nothing(self.index_dir):
            return decode_vectors(rows["embedding"], self.encoder.dim).astype(np.float32)

    def read_summaries(self, ids: Sequence[int]) -> FloatArray:
        """Read the summary tokens of these images: float32 (n, k, width); CannotAnswer if none are kept."""
        columns = list_token_columns(self.index_dir, self.manifest)
        rows = self._read(lambda manifest: read_rows(self.index_dir, manifest, ids, columns))
        with trust_nothing(self.index_dir):
            return decode_summaries(self.manifest, rows)

    def _read(self, read: Callable[[Manifest], Read]) -> Read:
        self.manifest, result = read_following(self.index_dir, self.manifest, read)
        return result

    def _require_all(self, count: int) -> None:
        if count != len(self):
            raise IndexDamaged(
                f"{self.index_dir} has {count} of the {len(self)} images it had when it was opened: "
                "open it again, or run `fwd2bot verify`"
            )


def list_token_columns(index_dir: Path, manifest: Manifest) -> list[str]:
    """The columns of summary tokens, for `decode_summaries`; CannotAnswer if the index keeps none."""
    if manifest.encoder.summary_shape is None:
        raise CannotAnswer(
            f"{index_dir} keeps no summary tokens (model {manifest.encoder.name}): "
            "index with a model that has them, and without `--tokens none`"
        )
    return ["summary", "summary_scale"] if manifest.tokens == "int8" else ["summary"]


def read_following(
    index_dir: Path, manifest: Manifest, read: Callable[[Manifest], Read]
) -> tuple[Manifest, Read]:
    """Call `read` with `manifest` or, if the files it names are gone, with the one that replaced it.

    Ids are never reused, so what is read by id stays the same. Returns the manifest that was used, and the
    result. IndexFailure if the index was rebuilt meanwhile.
    """
    while True:
        try:
            return manifest, read(manifest)
        except IndexFailure:  # damaged, or unreadable, as some network disks report a deleted file
            newest = read_manifest(index_dir)
            if newest == manifest:
                raise
            if newest.created != manifest.created:
                raise IndexFailure(f"{index_dir} was rebuilt since it was opened: open it again") from None
            manifest = newest


def read_vectors(
    index_dir: Path, manifest: Manifest, wanted: NDArray[np.int64] | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
    """Read ids (n,) and embeddings float16 (n, dim), in batches: of increasing `wanted` ids, or of all."""
    for table in read_columns(index_dir, manifest, ["id", "embedding"]):
        rows = table.filter(table["embedding"].is_valid())
        if wanted is not None:
            rows = rows.filter(pa.array(mark_members(rows["id"], wanted)))
        yield rows["id"].to_numpy(), decode_vectors(rows["embedding"], manifest.encoder.dim)


def mark_members(ids: pa.ChunkedArray, wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask of the ids that are among `wanted`, which must be increasing."""
    some: NDArray[np.int64] = ids.to_numpy()
    places = np.searchsorted(wanted, some)
    marks = np.zeros(len(some), bool)
    inside = places < len(wanted)
    marks[inside] = wanted[places[inside]] == some[inside]
    return marks
