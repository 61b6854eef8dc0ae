"""Retrieval metrics between the two sides of pairs: hit@K, recall@K, ranks and mAP, with only numpy.

hit@K: the fraction of queries with *at least one* positive among the K highest-scoring items. Papers on
image-text retrieval, and CLIP_benchmark (`image_retrieval_recall@K`, `text_retrieval_recall@K`), call this
number "Recall@K".
recall@K: the fraction of a query's positives that are among the K highest-scoring items, averaged over
queries. It equals hit@K from text to image, where a caption has one image, and is smaller from image to text,
where an image has five captions.
mAP: the mean over queries of average precision, which is the mean over a query's positives of the precision
at the rank of each.

Ties are broken in favour of the lower index, as in a stable sort. Intervals are 95 % bootstrap intervals over
queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.intervals import Interval, bootstrap_means
from encoders.base import DatasetError, EncoderError, FloatArray

IntArray = NDArray[np.int64]

CUTOFFS = (1, 5, 10)
# Scores held in memory at once: 64 MiB of float32, whatever the size of the gallery.
_BLOCK_SCORES = 1 << 24
NO_RANK = 0  # the rank of a positive that does not exist, or was not found


@dataclass(frozen=True)
class RecallReport:
    """Metrics of one direction, as fractions, by cutoff where that applies; ranks count from 1.

    chance: hit@K for items in random order. median_rank and mean_average_precision are None if only the first
    items of each ranking are known.
    """

    queries: int
    items: int
    hits: dict[int, float]
    hit_intervals: dict[int, Interval]
    recalls: dict[int, float]
    recall_intervals: dict[int, Interval]
    chance: dict[int, float]
    median_rank: float | None
    mean_average_precision: float | None


@dataclass(frozen=True)
class PairReport:
    """Both directions of one set of images and captions."""

    text_to_image: RecallReport
    image_to_text: RecallReport


def report_pairs(
    image_vectors: FloatArray,
    text_vectors: FloatArray,
    image_of_text: Sequence[int],
    cutoffs: Sequence[int] = CUTOFFS,
) -> PairReport:
    """Measure both directions; `image_of_text[i]` is the row of `image_vectors` that text i describes."""
    images = np.arange(len(image_vectors), dtype=np.int64)
    texts = np.asarray(image_of_text, dtype=np.int64)
    return PairReport(
        report_recall(text_vectors, image_vectors, texts, images, cutoffs),
        report_recall(image_vectors, text_vectors, images, texts, cutoffs),
    )


def report_recall(
    queries: FloatArray,
    items: FloatArray,
    query_groups: IntArray,
    item_groups: IntArray,
    cutoffs: Sequence[int] = CUTOFFS,
) -> RecallReport:
    """Measure one direction; an item is a positive of a query where their groups are equal."""
    ranks = rank_positives(queries, items, query_groups, item_groups)
    return report_ranks(ranks, count_positives(query_groups, item_groups), len(items), cutoffs)


def report_ranks(
    ranks: IntArray,
    positives: IntArray,
    items: int,
    cutoffs: Sequence[int] = CUTOFFS,
    complete: bool = True,
) -> RecallReport:
    """Summarise the ranks of each query's positives: (queries, most positives), from 1, or NO_RANK.

    positives: how many each query has. complete: whether every positive was found; if not, those missing have
    NO_RANK, and every cutoff must be small enough that their ranks are certain to be larger.
    """
    shares = [count_within(ranks, cutoff) / positives for cutoff in cutoffs]
    hits = [(share > 0).astype(np.float64) for share in shares]
    intervals = bootstrap_means(np.stack([*hits, *shares], axis=1))
    return RecallReport(
        queries=len(ranks),
        items=items,
        hits={cutoff: float(hit.mean()) for cutoff, hit in zip(cutoffs, hits, strict=True)},
        hit_intervals=dict(zip(cutoffs, intervals, strict=False)),
        recalls={cutoff: float(share.mean()) for cutoff, share in zip(cutoffs, shares, strict=True)},
        recall_intervals=dict(zip(cutoffs, intervals[len(cutoffs) :], strict=True)),
        chance={cutoff: chance_hit_rate(positives, items, cutoff) for cutoff in cutoffs},
        median_rank=float(np.median(take_first_ranks(ranks))) if complete else None,
        mean_average_precision=float(average_precision(ranks).mean()) if complete else None,
    )


def count_within(ranks: IntArray, cutoff: int) -> IntArray:
    """How many positives of each query are among the first `cutoff` items: int64 (queries,)."""
    found: IntArray = ((ranks != NO_RANK) & (ranks <= cutoff)).sum(axis=1)
    return found


def take_first_ranks(ranks: IntArray) -> IntArray:
    """The rank of each query's first positive, given the ranks of all: int64 (queries,)."""
    first: IntArray = np.where(ranks == NO_RANK, np.iinfo(np.int64).max, ranks).min(axis=1)
    return first


def average_precision(ranks: IntArray) -> NDArray[np.float64]:
    """The mean over a query's positives of the precision at the rank of each: float64 (queries,)."""
    ordered = np.sort(np.where(ranks == NO_RANK, np.iinfo(np.int64).max, ranks), axis=1)
    precisions = np.arange(1, ranks.shape[1] + 1) / ordered
    found = ordered < np.iinfo(np.int64).max
    means: NDArray[np.float64] = np.where(found, precisions, 0.0).sum(axis=1) / found.sum(axis=1)
    return means


def chance_hit_rate(positives: IntArray, items: int, cutoff: int) -> float:
    """The expected hit rate for items in random order, given each query's number of positives."""
    taken = np.arange(min(cutoff, items))
    misses = np.clip(items - positives[:, None] - taken, 0, None) / (items - taken)  # (queries, taken)
    return float(np.mean(1 - misses.prod(axis=1)))


def count_positives(query_groups: IntArray, item_groups: IntArray) -> IntArray:
    """How many items are positives of each query: int64 (queries,)."""
    ordered = np.sort(item_groups)
    return np.searchsorted(ordered, query_groups, "right") - np.searchsorted(ordered, query_groups, "left")


def rank_first_positives(
    queries: FloatArray, items: FloatArray, query_groups: IntArray, item_groups: IntArray
) -> IntArray:
    """The rank, from 1, of each query's first positive by inner product: int64 (queries,)."""
    return take_first_ranks(rank_positives(queries, items, query_groups, item_groups))


def rank_positives(
    queries: FloatArray, items: FloatArray, query_groups: IntArray, item_groups: IntArray
) -> IntArray:
    """The ranks, from 1, of all positives by inner product: int64 (queries, most), padded with NO_RANK."""
    _check_sides(queries, items, query_groups, item_groups)
    places = _find_positives(query_groups, item_groups)
    rows = max(1, _BLOCK_SCORES // len(items))
    blocks = [
        _rank_block(queries[start : start + rows] @ items.T, places[start : start + rows])
        for start in range(0, len(queries), rows)
    ]
    return np.concatenate(blocks)


def _find_positives(query_groups: IntArray, item_groups: IntArray) -> IntArray:
    """The item indices of each query's positives: int64 (queries, most), padded with -1."""
    order = np.argsort(item_groups, kind="stable")
    starts = np.searchsorted(item_groups[order], query_groups)
    counts = count_positives(query_groups, item_groups)
    offsets = np.arange(counts.max())
    places = order[np.minimum(starts[:, None] + offsets, len(order) - 1)]
    return np.where(offsets < counts[:, None], places, -1)


def _rank_block(scores: FloatArray, places: IntArray) -> IntArray:
    """Ranks of the items at `places` (queries, most) by scores (queries, items)."""
    ranks = np.full(places.shape, NO_RANK, np.int64)
    items = np.arange(scores.shape[1])
    for column, place in enumerate(places.T):
        own = np.take_along_axis(scores, np.maximum(place, 0)[:, None], axis=1)
        before = (scores > own) | ((scores == own) & (items < place[:, None]))
        ranks[:, column] = np.where(place >= 0, 1 + before.sum(axis=1), NO_RANK)
    return ranks


def _check_sides(
    queries: FloatArray, items: FloatArray, query_groups: IntArray, item_groups: IntArray
) -> None:
    if len(queries) != len(query_groups) or len(items) != len(item_groups):
        raise DatasetError(
            f"{len(queries)} queries with {len(query_groups)} groups and {len(items)} items with "
            f"{len(item_groups)} groups: give each vector one group."
        )
    if not len(queries) or not np.isin(query_groups, item_groups).all():
        lonely = int((~np.isin(query_groups, item_groups)).sum())
        raise DatasetError(
            f"{lonely} of {len(queries)} queries have no positive item: nothing can be measured."
        )
    if not (np.isfinite(queries).all() and np.isfinite(items).all()):
        # Comparisons with NaN are false, so every positive would get rank 1.
        raise EncoderError("Some embeddings are not finite numbers: the encoder is damaged or overflows.")
