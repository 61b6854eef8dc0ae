"""A sentence to a ranked list of images."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from encoders.base import (
    CannotAnswer,
    FloatArray,
    IndexDamaged,
    QueryError,
    Talker,
    TextEncoder,
    can_talk,
)
from indexer.columns import decode_summaries
from indexer.faiss_file import load_faiss
from indexer.faiss_index import FaissIndex
from indexer.faiss_refresh import refresh_faiss
from indexer.faiss_search import search_faiss
from indexer.manifest import Manifest, locate_root, read_manifest, require_same_encoder
from indexer.parts import REPAIR_REMEDY, find_rows, trust_nothing
from indexer.paths import leads_out, show_path, unescape_path
from indexer.table import list_token_columns, read_following, read_images

from .locate import find_index
from .query import clean_query
from .rerank import judge_images, rank_again


class Hit(NamedTuple):
    """One image found: its path below the root and its cosine with the query.

    `path` is in stored form (see indexer/paths.py); width and height are the pixels of the upright original.
    """

    id: int
    path: str
    score: float
    width: int
    height: int


class Searcher:
    """An index open for queries, as it was at that moment: open it anew to see what later runs added."""

    def __init__(
        self, index_dir: Path, manifest: Manifest, encoder: TextEncoder, neighbours: FaissIndex
    ) -> None:
        self.index_dir = index_dir
        self.manifest = manifest
        self.root = locate_root(manifest, index_dir)
        self.encoder = encoder
        self._neighbours = neighbours

    @classmethod
    def open(cls, index_dir: str | Path) -> "Searcher":
        """Open an index, or that of a folder, with the encoder that made it; refuses one that has changed."""
        index_dir = find_index(index_dir)
        manifest, neighbours = read_following(
            index_dir, read_manifest(index_dir), partial(open_neighbours, index_dir)
        )
        return cls(index_dir, manifest, load_matching_reader(manifest), neighbours)

    def __len__(self) -> int:
        """How many images are searched."""
        return self._neighbours.count

    def search(self, text: str, k: int = 10, rerank: int = 0) -> list[Hit]:
        """The k images that fit the text best, best first; of all, the nearest `rerank` are ranked again."""
        _require_results(k)
        text, rerank = clean_query(text), max(rerank, 0)
        (hits,) = self.search_vectors(self.encoder.encode_texts([text]), max(k, rerank))
        return [*self.rerank(text, hits[:rerank]), *hits[rerank:]][:k]

    def rerank(self, text: str, hits: Sequence[Hit]) -> list[Hit]:
        """Hits in order of their cosines and of how likely the text is as a caption of their stored tokens.

        Their scores stay the cosines. CannotAnswer where the model or the index keeps no tokens.
        """
        if not hits:
            return []
        talker, columns = require_talker(self.encoder), list_token_columns(self.index_dir, self.manifest)
        rows = self._find_rows([hit.id for hit in hits], columns)
        kept = {hit.id: hit for hit in hits}
        hits = [kept[image_id] for image_id in rows["id"].to_pylist()]  # a compaction may have dropped some
        with trust_nothing(self.index_dir):
            summaries = decode_summaries(self.manifest, rows)
        likelihoods = judge_images(talker, summaries, text)
        order = rank_again(np.array([hit.score for hit in hits], np.float32), likelihoods)
        return [hits[place] for place in order]

    def search_vectors(self, vectors: ArrayLike, k: int = 10) -> list[list[Hit]]:
        """The k images nearest to each vector (n, dim), best first; rows of any length, scored by cosine."""
        _require_results(k)
        found = search_faiss(self._neighbours, _to_unit_rows(vectors, self.manifest.encoder.dim), k)
        ids = sorted({image_id for row in found for image_id, _ in row})
        images = self._read_images(ids)
        return [
            [Hit(score=score, **images[image_id]) for image_id, score in row if image_id in images]
            for row in found
        ]

    def _read_images(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """What the index says of these images; those that a compaction has dropped since are left out."""
        rows = self._find_rows(ids, ["path", "width", "height"])
        images = {image["id"]: image for image in rows.to_pylist()}
        for image in images.values():
            if leads_out(image["path"]):  # an index from elsewhere, and the paths go to other commands
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


def _require_results(k: int) -> None:
    if k < 1:
        raise QueryError(f"{k} results were asked for: ask for one or more")


def _to_unit_rows(vectors: ArrayLike, dim: int) -> FloatArray:
    """Rows scaled to unit length; QueryError where they are no rows of `dim` finite numbers, or zero."""
    try:
        rows = np.asarray(vectors, np.float64)
    except (TypeError, ValueError):
        raise QueryError(f"the vectors are no numbers: give float rows of shape (n, {dim})") from None
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise QueryError(f"the vectors are of shape {rows.shape}: give float rows of shape (n, {dim})")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise QueryError("a vector holds NaN or infinity, or nothing but zeros, and is near to no image")
    return np.asarray(rows / lengths, np.float32)


def load_matching_reader(manifest: Manifest) -> TextEncoder:
    """Load what reads texts and tokens as the encoder that an index names, and refuse another of its name."""
    from encoders.load import load_reader  # torch and transformers may come with it

    reader = load_reader(manifest.encoder.name, manifest.encoder.fingerprint)
    require_same_encoder(reader, manifest)
    return reader


def require_talker(encoder: TextEncoder) -> Talker:
    """The same encoder; CannotAnswer where it keeps no summary tokens."""
    if not can_talk(encoder):
        raise CannotAnswer(f"the model {encoder.name} cannot talk: index with one that can, such as tiny")
    return encoder


def open_neighbours(index_dir: Path, manifest: Manifest) -> FaissIndex:
    """The nearest neighbours of all that is committed; mapped into memory where the FAISS file covers it."""
    if manifest.faiss is not None and manifest.faiss_is_current:
        return load_faiss(index_dir, manifest.faiss, manifest.encoder.dim)
    # A run is under way or was killed: the parts have it all.
    return refresh_faiss(index_dir, manifest, read_images(index_dir, manifest)["id"].to_numpy())
