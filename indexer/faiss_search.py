"""Queries against the FAISS index: batching, ties, lists with too few results, and the GPU for many."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.base import FloatArray

from .faiss_gpu import GPU_MOST_RESULTS, copy_to_gpu, pays_on_gpu
from .faiss_index import MOST_TOUCHED, FaissIndex
from .faiss_library import import_faiss
from .faiss_recipe import count_probes

MOST_TIES = GPU_MOST_RESULTS
BLAS_QUERIES = 24  # from this many on, one matrix product is faster than a scan per query
ROWS_PER_PRODUCT = 8192

Found = tuple[FloatArray, NDArray[np.int64]]  # scores and ids, both (n, k), best first; id -1 is no result


@dataclass(frozen=True)
class Selection:
    """Some ids to search among: how many, and the faiss selector of them. See `select_for_faiss`."""

    count: int
    selector: Any


def select_for_faiss(ids: NDArray[np.int64]) -> Selection:
    """Prepare ids for `search_faiss`: some 50 bytes each, however large they are."""
    return Selection(len(ids), import_faiss().IDSelectorBatch(ids))


def search_faiss(
    index: FaissIndex, queries: FloatArray, k: int, only: Selection | None = None
) -> list[list[tuple[int, float]]]:
    """The k best (id, score) pairs of each query (n, dim), best first, ties in order of id.

    only: the ids to search among; None for all.
    """
    k = min(k, only.count if only else index.count)
    if k == 0:
        return [[] for _ in queries]
    scores, ids = _search_past_ties(index, np.ascontiguousarray(queries, np.float32), k, only)
    order = np.lexsort((ids, -scores))[:, :k]
    scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    return [
        [(image_id, score) for image_id, score in zip(*row, strict=True) if image_id != -1]
        for row in zip(ids.tolist(), scores.tolist(), strict=True)
    ]


def _search_past_ties(index: FaissIndex, queries: FloatArray, k: int, only: Selection | None) -> Found:
    """The k best and all ties with the k-th, to be broken by id; at most max(k + 1, MOST_TIES)."""
    count = only.count if only else index.count
    most = min(count, max(k + 1, MOST_TIES))
    wanted = min(count, k + 1)
    while True:
        scores, ids = _search_enough(index, queries, wanted, only.selector if only else None)
        tied = (scores[:, -1] == scores[:, k - 1]) & (ids[:, -1] != -1)
        if wanted == most or not tied.any():
            return scores, ids
        wanted = min(most, 4 * wanted)


def _search_enough(index: FaissIndex, queries: FloatArray, k: int, selector: Any) -> Found:
    """The k best, probing as many lists as it takes to find k."""
    on_gpu = selector is None and pays_on_gpu(len(queries), k)
    if on_gpu and index.gpu is None:
        index.gpu = copy_to_gpu(index.cpu, exact=index.trained == 0)
    searched = index.gpu if on_gpu else index.cpu
    if index.trained:
        most = min(index.cpu.nlist, GPU_MOST_RESULTS) if on_gpu else index.cpu.nlist
        return _search_lists(index, searched, queries, k, most, selector)
    if selector is not None:
        parameters = import_faiss().SearchParameters(sel=selector)
        return searched.search(queries, k, params=parameters)  # type: ignore[no-any-return]
    if on_gpu or len(queries) < BLAS_QUERIES:
        return searched.search(queries, k)  # type: ignore[no-any-return]
    return _search_products(index.cpu, queries, k)


def _search_lists(
    index: FaissIndex, searched: Any, queries: FloatArray, k: int, most_probes: int, selector: Any
) -> Found:
    probes = min(most_probes, count_probes(index.cpu.nlist))
    while True:
        scores, ids = _search_probes(index, searched, queries, k, probes, selector)
        if probes == most_probes or not (ids[:, -1] == -1).any():
            return scores, ids
        probes = min(most_probes, 4 * probes)


def _search_probes(
    index: FaissIndex, searched: Any, queries: FloatArray, k: int, probes: int, selector: Any
) -> Found:
    """Probe this many lists per query; in a mapped file, release pages after every batch of queries."""
    parameters = import_faiss().SearchParametersIVF(nprobe=probes, sel=selector)
    share = probes / index.cpu.nlist  # of the file, per query
    size = len(index.pages) if index.pages is not None and searched is index.cpu else 0
    step = max(1, int(MOST_TOUCHED / (share * size))) if size else len(queries)
    found = []
    for start in range(0, len(queries), step):
        some = queries[start : start + step]
        found.append(searched.search(some, k, params=parameters))
        index.give_back_pages(min(1.0, share * len(some)))
    scores, ids = zip(*found, strict=True)
    return np.concatenate(scores), np.concatenate(ids)


def _search_products(index: Any, queries: FloatArray, k: int) -> Found:
    """Exact search by matrix products over blocks of decoded vectors."""
    faiss = import_faiss()
    id_map = faiss.vector_to_array(index.id_map)
    best = faiss.ResultHeap(len(queries), k, keep_max=True)
    for start in range(0, index.ntotal, ROWS_PER_PRODUCT):
        vectors = index.index.reconstruct_n(start, min(ROWS_PER_PRODUCT, index.ntotal - start))
        size = min(k, len(vectors))
        scores, places = faiss.knn(queries, vectors, size, metric=faiss.METRIC_INNER_PRODUCT)
        best.add_result(scores, id_map[start + places])
    best.finalize()
    return best.D, best.I
