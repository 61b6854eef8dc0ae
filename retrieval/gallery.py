"""The images of an index, open for nearest-neighbour search by vector or by image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from encoders.base import FloatArray, IndexDamaged, QueryError
from indexer.faiss_file import load_faiss
from indexer.faiss_index import FaissIndex
from indexer.faiss_refresh import refresh_faiss
from indexer.faiss_search import Selection, search_faiss, select_for_faiss
from indexer.manifest import Manifest, read_manifest
from indexer.parts import REPAIR_REMEDY, find_rows
from indexer.paths import leads_out, show_path, unescape_path
from indexer.roots import locate_root
from indexer.table import read_following, read_images

from .filters import ALL, Filter, select_ids
from .image_query import embed_query_image
from .locate import find_index


class Hit(NamedTuple):
    """One image found: its path below the root and its cosine with the query.

    `path` is in stored form (see indexer/paths.py); width and height, in pixels, are of the upright original.
    """

    id: int
    path: str
    score: float
    width: int
    height: int


class Gallery:
    """The images of an index as they were when it was opened; reopen it to see what later runs added."""

    def __init__(
        self,
        index_dir: Path,
        manifest: Manifest,
        neighbours: FaissIndex,
        only: Selection | None = None,
    ) -> None:
        """only: the images to search; None for all."""
        self.index_dir = index_dir
        self.manifest = manifest
        self.root = locate_root(manifest.root, index_dir)
        self._neighbours = neighbours
        self._only = only

    @classmethod
    def open(cls, index_dir: str | Path, wanted: Filter = ALL) -> "Gallery":
        """Open an index, or that of a folder, for the images that pass a filter; no model is loaded."""
        return cls(*open_index(index_dir, wanted))

    def __len__(self) -> int:
        """The number of images searched."""
        return self._only.count if self._only else self._neighbours.count

    def search_image(self, image: str | Path | int, k: int = 10) -> list[Hit]:
        """The k images most similar to another, best first, without that image itself.

        image: one of the index, named as for `find_image` and compared by its stored embedding; or any other
        image file, for which the model that made the index is loaded.
        """
        require_results(k)
        vector, image_id = embed_query_image(self.index_dir, image)
        (hits,) = self.search_vectors(vector, k + 1)
        return [hit for hit in hits if hit.id != image_id][:k]

    def search_vectors(self, vectors: ArrayLike, k: int = 10) -> list[list[Hit]]:
        """The k images nearest to each row (n, dim), best first, scored by cosine; rows of any norm."""
        require_results(k)
        rows = _to_unit_rows(vectors, self.manifest.encoder.dim)
        found = search_faiss(self._neighbours, rows, k, self._only)
        ids = sorted({image_id for row in found for image_id, _ in row})
        images = self._read_images(ids)
        return [
            [
                Hit(score=_clip_score(score), **images[image_id])
                for image_id, score in row
                if image_id in images
            ]
            for row in found
        ]

    def _read_images(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The id, path and size of these images, by id, without those that a compaction has since dropped."""
        rows = self._find_rows(ids, ["path", "width", "height"])
        images = {image["id"]: image for image in rows.to_pylist()}
        for image in images.values():
            if leads_out(image["path"]):  # an index from elsewhere; paths are passed to other commands
                path = show_path(unescape_path(image["path"]))
                raise IndexDamaged(
                    f"{self.index_dir} has an image outside its folder, {path}: {REPAIR_REMEDY}"
                )
        return images

    def _find_rows(self, ids: Sequence[int], columns: Sequence[str]) -> pa.Table:
        self.manifest, rows = read_following(
            self.index_dir,
            self.manifest,
            lambda manifest: find_rows(self.index_dir, manifest, ids, columns),
        )
        return rows


def require_results(k: int) -> None:
    """Raise QueryError if fewer than one result is asked for."""
    if k < 1:
        raise QueryError(f"{k} results were asked for: ask for one or more")


def _to_unit_rows(vectors: ArrayLike, dim: int) -> FloatArray:
    """Scale rows (n, dim) to unit length; QueryError for another shape, NaN, infinity or a zero row."""
    try:
        rows = np.asarray(vectors, np.float64)
    except (TypeError, ValueError):
        raise QueryError(f"the vectors are not numbers: give float rows of shape (n, {dim})") from None
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise QueryError(f"the vectors are of shape {rows.shape}: give float rows of shape (n, {dim})")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise QueryError("a vector holds NaN or infinity, or nothing but zeros, and is near to no image")
    return np.asarray(rows / lengths, np.float32)


def _clip_score(score: float) -> float:
    """A score as a cosine can be: stored vectors are rounded, so some are a little longer than 1."""
    return max(-1.0, min(score, 1.0))


def open_index(index_dir: str | Path, wanted: Filter) -> tuple[Path, Manifest, FaissIndex, Selection | None]:
    """An index's folder, manifest and FAISS index, and the images that pass the filter (None for all)."""
    place = find_index(index_dir)

    def read(manifest: Manifest) -> tuple[FaissIndex, Selection | None]:
        only = None if wanted == ALL else select_for_faiss(select_ids(place, manifest, wanted))
        return open_neighbours(place, manifest), only

    manifest, opened = read_following(place, read_manifest(place), read)
    return place, manifest, *opened


def open_neighbours(index_dir: Path, manifest: Manifest) -> FaissIndex:
    """The FAISS index of all committed images; memory-mapped if the FAISS file covers them all."""
    if manifest.faiss is not None and manifest.faiss_is_current:
        return load_faiss(index_dir, manifest.faiss, manifest.encoder.dim)
    # A run is under way or was killed: update from the parts, which hold everything.
    return refresh_faiss(index_dir, manifest, read_images(index_dir, manifest)["id"].to_numpy())
