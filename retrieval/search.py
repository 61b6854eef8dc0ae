"""A sentence to a ranked list of images."""

from pathlib import Path
from typing import NamedTuple

from encoders.base import Encoder, FloatArray, QueryError
from indexer.faiss_file import load_faiss
from indexer.faiss_index import FaissIndex
from indexer.faiss_refresh import refresh_faiss
from indexer.faiss_search import search_faiss
from indexer.manifest import Manifest, locate_root, read_manifest, require_same_encoder
from indexer.parts import read_rows
from indexer.table import EmbeddingTable

from .query import clean_query


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

    def __init__(self, index_dir: Path, manifest: Manifest, encoder: Encoder, neighbours: FaissIndex) -> None:
        self.index_dir = index_dir
        self.manifest = manifest
        self.root = locate_root(manifest, index_dir)
        self.encoder = encoder
        self._neighbours = neighbours

    @classmethod
    def open(cls, index_dir: Path) -> "Searcher":
        """Open an index with the encoder that made it, and refuse one that has changed since."""
        manifest = read_manifest(index_dir)
        neighbours = _open_neighbours(index_dir, manifest)
        return cls(index_dir, manifest, load_matching_encoder(manifest), neighbours)

    def search(self, text: str, k: int = 10) -> list[Hit]:
        """The k images that fit the text best, best first."""
        (hits,) = self.search_vectors(self.encoder.encode_texts([clean_query(text)]), k)
        return hits

    def search_vectors(self, vectors: FloatArray, k: int = 10) -> list[list[Hit]]:
        """The k images nearest to each unit vector (n, dim), best first."""
        if k < 1:
            raise QueryError(f"{k} results were asked for: ask for one or more")
        found = search_faiss(self._neighbours, vectors, k)
        ids = sorted({image_id for row in found for image_id, _ in row})
        images = read_rows(self.index_dir, self.manifest, ids, ["path", "width", "height"])
        by_id = {image["id"]: image for image in images.to_pylist()}
        return [[Hit(score=score, **by_id[image_id]) for image_id, score in row] for row in found]


def load_matching_encoder(manifest: Manifest) -> Encoder:
    """Load the encoder that an index names, and refuse another of the same name."""
    from encoders.load import load_encoder  # torch and transformers come with it

    encoder = load_encoder(manifest.encoder.name)
    require_same_encoder(encoder, manifest)
    return encoder


def _open_neighbours(index_dir: Path, manifest: Manifest) -> FaissIndex:
    if manifest.faiss is not None and manifest.faiss_is_current:
        return load_faiss(index_dir, manifest.faiss, manifest.encoder.dim)
    # A run is under way or was killed: the parts have it all.
    return refresh_faiss(index_dir, manifest, EmbeddingTable.open(index_dir).ids)
