"""The FAISS index: nearest neighbours by inner product, derived from the parts and rebuildable from them.

Vectors come as a stream, so that ten million need not fit in memory; a few new ones are added to the index
that exists. See faiss_recipe.py for the kinds of index, faiss_search.py for queries and faiss_file.py for the
file.
"""

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.base import FloatArray, IndexDamaged

from .faiss_library import import_faiss
from .faiss_recipe import (
    count_lists,
    create_assigner,
    create_exact,
    draw_sample,
    is_exact,
    train_lists,
)

ROWS_PER_ADD = 65_536
MOST_TOUCHED = 1 << 30  # bytes
FAISS_REMEDY = "run `fwd2bot index DIR` to build it again from the parts"

# Opens a stream of blocks of ids (n,) and vectors (n, dim); can be called more than once.
VectorBlocks = Callable[[], Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]]


@dataclass
class FaissIndex:
    """An index of faiss (which ships no types), and how many vectors it held when trained: 0 if it is exact.

    `gpu` is a copy on the GPU, made once enough queries arrive together. `pages` is the memory-mapped file,
    if any, and `touched` the bytes that searches have read of it since its pages were last released.
    """

    cpu: Any
    trained: int
    gpu: Any = None
    pages: mmap.mmap | None = None
    touched: float = 0

    @property
    def count(self) -> int:
        """The number of vectors in it."""
        return int(self.cpu.ntotal)

    def give_back_pages(self, share: float) -> None:
        """Note that a search read this share of the file; past MOST_TOUCHED bytes, release its pages."""
        if self.pages is None or not hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            return
        self.touched += share * len(self.pages)
        if self.touched > MOST_TOUCHED:
            # They stay in the page cache while nothing else needs the memory.
            self.pages.madvise(mmap.MADV_DONTNEED)
            self.touched = 0


def build_faiss(blocks: VectorBlocks, count: int, dim: int) -> FaissIndex:
    """Build an index of `count` unit vectors of length dim that returns their ids.

    IndexDamaged if the blocks hold another number of vectors.
    """
    if is_exact(count):
        index = FaissIndex(create_exact(dim, count), trained=0)
        _add_blocks(index, blocks)
    else:
        index = _build_lists(blocks, count, dim)
    if index.count != count:
        raise IndexDamaged(f"the parts hold {index.count} embeddings of {count} images: {FAISS_REMEDY}")
    return index


def _build_lists(blocks: VectorBlocks, count: int, dim: int) -> FaissIndex:
    """The approximate index, with every vector in the list of its nearest centroid."""
    faiss = import_faiss()
    lists = count_lists(count)
    index = train_lists(_gather_rows(blocks, draw_sample(count, lists), dim), lists)
    assigner = create_assigner(dim, lists)
    centres = index.quantizer.reconstruct_n(0, lists)
    assigner.train(centres)
    assigner.add(centres)
    for ids, vectors in _cut_blocks(blocks):
        nearest = assigner.search(vectors, 1)[1]
        index.add_core(len(ids), *map(faiss.swig_ptr, (vectors, ids, nearest)))
    return FaissIndex(index, trained=count)


def update_faiss(index: FaissIndex, blocks: VectorBlocks, removed_ids: NDArray[np.int64]) -> None:
    """Remove ids from an index and add vectors to it, in place."""
    if len(removed_ids):
        index.cpu.remove_ids(np.ascontiguousarray(removed_ids))
    _add_blocks(index, blocks)


def read_faiss_ids(index: FaissIndex) -> NDArray[np.int64]:
    """The ids an index can return, in increasing order."""
    faiss = import_faiss()
    if index.trained == 0:
        ids: NDArray[np.int64] = faiss.vector_to_array(index.cpu.id_map)
    else:
        lists = index.cpu.invlists
        ids = np.empty(index.count, np.int64)
        filled = 0
        for number in range(lists.nlist):
            size = lists.list_size(number)
            if size:  # faiss gives no address for an empty list
                ids[filled : filled + size] = faiss.rev_swig_ptr(lists.get_ids(number), size)
            filled += size
    return np.sort(ids)


def _add_blocks(index: FaissIndex, blocks: VectorBlocks) -> None:
    for ids, vectors in _cut_blocks(blocks):
        index.cpu.add_with_ids(vectors, ids)


def _cut_blocks(blocks: VectorBlocks) -> Iterator[tuple[NDArray[np.int64], FloatArray]]:
    """The stream as float32, in blocks of at most ROWS_PER_ADD rows."""
    for ids, vectors in blocks():
        for start in range(0, len(ids), ROWS_PER_ADD):
            some = slice(start, start + ROWS_PER_ADD)
            yield np.ascontiguousarray(ids[some]), np.ascontiguousarray(vectors[some], np.float32)


def _gather_rows(blocks: VectorBlocks, places: NDArray[np.int64], dim: int) -> FloatArray:
    """The vectors, float32 (n, dim), at these increasing positions of the stream."""
    rows = np.empty((len(places), dim), np.float32)
    start = 0
    for _, vectors in blocks():
        first, last = np.searchsorted(places, [start, start + len(vectors)])
        rows[first:last] = vectors[places[first:last] - start]
        start += len(vectors)
    return rows
