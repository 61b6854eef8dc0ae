"""What storing embeddings costs in recall: queries the index of `fwd2bot index` the way `search` does.

Text to image is answered by the index itself, so only the first MOST_HITS of each ranking are known; image to
text ranks all captions against the image's stored vector.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from benchmarks.datasets import CaptionedImage
from benchmarks.embedding import pool_summaries
from benchmarks.readers.base import open_photo
from benchmarks.recall import (
    CUTOFFS,
    NO_RANK,
    IntArray,
    PairReport,
    report_pairs,
    report_ranks,
    report_recall,
)
from encoders.base import DatasetError, Encoder, FloatArray
from indexer.build import BuildSettings, build
from indexer.faiss_file import load_faiss, save_faiss
from indexer.faiss_index import FaissIndex
from indexer.faiss_recipe import count_lists, train_lists
from indexer.table import EmbeddingTable
from retrieval.gallery import Gallery, Hit, open_neighbours

MOST_HITS = max(CUTOFFS)
EXACT, LISTS, TOKENS = "float16 index", "IVF,SQ8 index", "int8 tokens"
_LEAST_LISTS = 4


class Captions(NamedTuple):
    """Captions: embeddings (n, dim), the row of each one's image among the images, and texts."""

    vectors: FloatArray
    image_rows: IntArray
    texts: Sequence[str]


def refuse_used_folder(folder: Path | None) -> None:
    """Raise DatasetError, before hours of work, if an index would be built among other files."""
    if folder is not None and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DatasetError(f"{folder} is not empty, and nothing there is overwritten: name a new folder.")


def index_images(encoder: Encoder, images: Sequence[CaptionedImage], folder: Path) -> Path:
    """Index exactly these images, named by their row numbers, in a new folder; returns the index folder."""
    gallery = folder / "gallery"
    gallery.mkdir(parents=True)
    for row, image in enumerate(images):
        _link_photo(image.path, gallery / f"{row:09d}{image.path.suffix.lower()}")
    index = folder / "index"
    build(gallery, index, encoder, BuildSettings(follow_links=True))
    return index


def _link_photo(photo: Path, link: Path) -> None:
    """Put a photo under another name: a symbolic link if it is a file and the system allows, else a copy."""
    try:
        if photo.is_file():
            link.symlink_to(photo.resolve())
            return
    except OSError:  # Windows requires a privilege
        pass
    with open_photo(photo) as source, link.open("wb") as target:
        shutil.copyfileobj(source, target)


def measure_stored_forms(index: Path, captions: Captions, images: int) -> dict[str, PairReport]:
    """Recall by storage form, for an index that `index_images` made of that many images.

    The forms: the index as written; inverted lists with eight bits per value, as it would be above 200,000
    images; and, if the index keeps them, int8 tokens, whose means are the embeddings.
    """
    table = EmbeddingTable.open(index)
    if len(table) != images:
        raise DatasetError(
            f"{index} holds {len(table)} of the {images} images, so its recall is not theirs: "
            "run `fwd2bot index` on the photos to see which it skips, and why."
        )
    neighbours, lists = open_neighbours(index, table.manifest), build_lists(table)
    chosen = EXACT if neighbours.trained == 0 else LISTS
    forms = {chosen: _measure_index(table, neighbours, table.vectors.astype(np.float32), captions)}
    if lists is not None and chosen != LISTS:
        decoded = lists.cpu.reconstruct_n(0, int(table.ids[-1]) + 1)[table.ids]
        forms[LISTS] = _measure_index(table, lists, decoded, captions)
    if table.manifest.tokens == "int8" and table.encoder.summary_shape is not None:
        forms[TOKENS] = report_pairs(
            _order_by_row(table, pool_summaries(table.read_summaries(table.ids.tolist()))),
            captions.vectors,
            captions.image_rows.tolist(),
        )
    return forms


def build_lists(table: EmbeddingTable) -> FaissIndex | None:
    """The inverted lists used for many images, over any number of them, from a file; None below four."""
    vectors = table.vectors.astype(np.float32)
    if len(vectors) < _LEAST_LISTS:
        return None
    lists = max(_LEAST_LISTS, min(count_lists(len(vectors)), len(vectors) // 4))
    index = FaissIndex(train_lists(vectors, lists), trained=len(vectors))
    index.cpu.add_with_ids(vectors, table.ids)
    folder = table.index_dir.parent
    record = save_faiss(index, folder / "lists.faiss", table.manifest.next_id)
    return load_faiss(folder, record, table.encoder.dim)


def _measure_index(
    table: EmbeddingTable, neighbours: FaissIndex, kept: FloatArray, captions: Captions
) -> PairReport:
    """Recall in both directions; `kept` are the stored image vectors, in the order of ids."""
    hits = Gallery(table.index_dir, table.manifest, neighbours).search_vectors(captions.vectors, MOST_HITS)
    ranks = np.full((len(hits), 1), NO_RANK, np.int64)
    for query, (found, own) in enumerate(zip(hits, captions.image_rows.tolist(), strict=True)):
        ranks[query] = find_rank(found, own)
    images = np.arange(len(table), dtype=np.int64)
    return PairReport(
        report_ranks(ranks, np.ones(len(ranks), np.int64), len(table), complete=False),
        report_recall(_order_by_row(table, kept), captions.vectors, images, captions.image_rows),
    )


def _order_by_row(table: EmbeddingTable, vectors: FloatArray) -> FloatArray:
    ordered = np.empty_like(vectors)
    ordered[[_read_row(path) for path in table.paths]] = vectors
    return ordered


def find_rank(hits: Sequence[Hit], own: int) -> int:
    """The rank, from 1, of the image of row `own` among hits in an `index_images` index; else NO_RANK."""
    rows = [_read_row(hit.path) for hit in hits]
    return rows.index(own) + 1 if own in rows else NO_RANK


def _read_row(path: str) -> int:
    return int(PurePosixPath(path).stem)
