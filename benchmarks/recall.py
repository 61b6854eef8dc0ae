"""How well one side of pairs is found from the other: hit@K and ranks, in blocks, with numpy alone.

hit@K is the share of queries with *at least one* positive among the K items of highest score. Papers on
image-text retrieval, and CLIP_benchmark (`image_retrieval_recall@K`, `text_retrieval_recall@K`), print this
number as "Recall@K". Recall in the word's own meaning, the share of a query's positives found, equals it from
text to image, where a caption has one image, and is smaller from image to text, where an image has five
captions: it is not computed here. A tie goes to the item of lower index, as in a stable sort.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.base import DatasetError, EncoderError, FloatArray

IntArray = NDArray[np.int64]

CUTOFFS = (1, 5, 10)
# Scores held at once: 64 MiB of float32, whatever the size of the gallery.
_BLOCK_SCORES = 1 << 24


@dataclass(frozen=True)
class RecallReport:
    """Hits by cutoff beside what guessing gives, as shares of all queries; ranks count from 1."""

    queries: int
    items: int
    hits: dict[int, float]
    chance: dict[int, float]
    median_rank: float


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
    ranks = rank_first_positives(queries, items, query_groups, item_groups)
    positives = count_positives(query_groups, item_groups)
    return RecallReport(
        queries=len(queries),
        items=len(items),
        hits={cutoff: hit_rate(ranks, cutoff) for cutoff in cutoffs},
        chance={cutoff: chance_hit_rate(positives, len(items), cutoff) for cutoff in cutoffs},
        median_rank=float(np.median(ranks)),
    )


def hit_rate(ranks: IntArray, cutoff: int) -> float:
    """The share of queries whose first positive is among the first `cutoff` items."""
    return float(np.mean(ranks <= cutoff))


def chance_hit_rate(positives: IntArray, items: int, cutoff: int) -> float:
    """The hit rate of items in random order, for queries with that many positives each."""
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
    _check_sides(queries, items, query_groups, item_groups)
    rows = max(1, _BLOCK_SCORES // len(items))
    blocks = [
        _rank_block(queries[start : start + rows] @ items.T, query_groups[start : start + rows], item_groups)
        for start in range(0, len(queries), rows)
    ]
    return np.concatenate(blocks)


def _rank_block(scores: FloatArray, query_groups: IntArray, item_groups: IntArray) -> IntArray:
    positive = query_groups[:, None] == item_groups[None, :]
    best = np.where(positive, scores, -np.inf).max(axis=1, keepdims=True)
    tied = scores == best
    first = np.argmax(tied & positive, axis=1)
    tied_before = tied & (np.arange(len(item_groups)) < first[:, None])
    ranks: IntArray = 1 + (scores > best).sum(axis=1) + tied_before.sum(axis=1)
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
        # A comparison with NaN is false, and would put every positive first.
        raise EncoderError("Some embeddings are not finite numbers: the encoder is damaged or overflows.")
