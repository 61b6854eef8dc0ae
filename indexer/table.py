"""The index as one table of images: all parts together, where the newest row of a path wins."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from encoders.base import CannotAnswer, FloatArray, IndexDamaged

from .manifest import REBUILD_REMEDY, EncoderRecord, Manifest, locate_root, read_manifest
from .parts import decode_summaries, decode_vectors, read_columns, read_rows


class KnownFile(NamedTuple):
    """The newest row of a path, without its embedding; `status` is ok, skipped or deleted."""

    id: int
    path: str
    size: int
    mtime_ns: int
    width: int
    height: int
    status: str
    error: str


def read_known_files(index_dir: Path, manifest: Manifest) -> dict[str, KnownFile]:
    """Read the newest row of every path the index has ever seen."""
    known: dict[str, KnownFile] = {}
    for table in read_columns(index_dir, manifest, KnownFile._fields):
        columns = [table[name].to_pylist() for name in KnownFile._fields]
        known.update((row[1], KnownFile(*row)) for row in zip(*columns, strict=True))
    return known


class EmbeddingTable:
    """The images of an index: `ids` int64 (n,), increasing, and their `paths`, one for each.

    Paths are relative to `root`, in stored form. Vectors and summaries are read when they are asked for.
    """

    def __init__(self, index_dir: Path, manifest: Manifest, files: Sequence[KnownFile]) -> None:
        self.index_dir = index_dir
        self.manifest = manifest
        self.root = locate_root(manifest, index_dir)
        self.files = files
        self.ids = np.array([file.id for file in files], dtype=np.int64)
        self.paths = [file.path for file in files]

    @classmethod
    def open(cls, index_dir: Path) -> "EmbeddingTable":
        """Open an index for reading, without a lock; IndexNotFound or IndexDamaged where it cannot be."""
        manifest = read_manifest(index_dir)
        known = read_known_files(index_dir, manifest).values()
        return cls(index_dir, manifest, sorted(file for file in known if file.status == "ok"))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def encoder(self) -> EncoderRecord:
        """The model that made the index."""
        return self.manifest.encoder

    @cached_property
    def vectors(self) -> NDArray[np.float16]:
        """Embeddings, float16 (n, dim), in the order of `ids`."""
        vectors = np.empty((len(self.ids), self.encoder.dim), np.float16)
        filled = 0
        for ids, block in read_vectors(self.index_dir, self.manifest):
            kept = block[np.isin(ids, self.ids, assume_unique=True)]
            vectors[filled : filled + len(kept)] = kept
            filled += len(kept)
        if filled != len(vectors):
            raise IndexDamaged(
                f"{self.index_dir} has {filled} embeddings of {len(vectors)} images: {REBUILD_REMEDY}"
            )
        return vectors

    def read_summaries(self, ids: Sequence[int]) -> FloatArray:
        """Read the summary tokens of these images: float32 (n, k, width)."""
        if self.encoder.summary_shape is None:
            raise CannotAnswer(
                f"{self.index_dir} keeps no summary tokens (model {self.encoder.name}): "
                "index with a model that has them, and without `--tokens none`"
            )
        columns = ["summary", "summary_scale"] if self.manifest.tokens == "int8" else ["summary"]
        return decode_summaries(self.manifest, read_rows(self.index_dir, self.manifest, ids, columns))


def read_vectors(
    index_dir: Path, manifest: Manifest
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
    """Read ids (n,) and embeddings float16 (n, dim) of the rows that have one, part by part."""
    for table in read_columns(index_dir, manifest, ["id", "embedding"]):
        present = table["embedding"].is_valid().to_numpy()
        ids: NDArray[np.int64] = table["id"].to_numpy()[present]
        yield ids, decode_vectors(table["embedding"], manifest.encoder.dim)
