"""Recall of `search --rerank`, which reranks the nearest images of an index by their stored tokens."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.recall import CUTOFFS, NO_RANK, IntArray, RecallReport, report_ranks
from benchmarks.stored_forms import MOST_HITS, Captions, find_rank
from encoders.base import Encoder
from indexer.manifest import read_manifest
from retrieval.gallery import open_neighbours
from retrieval.search import Searcher


@dataclass(frozen=True)
class RerankReport:
    """Text to image without reranking (plain), and with the nearest `depth` reranked (again).

    gains: the difference in hit@K, by cutoff, as a fraction. errors: its standard error, clustered by image,
    because the captions of one image are not independent queries.
    """

    depth: int
    plain: RecallReport
    again: RecallReport
    gains: dict[int, float]
    errors: dict[int, float]


def measure_reranking(
    encoder: Encoder, index: Path, captions: Captions, images: int, depth: int
) -> RerankReport:
    """Search an `index_images` index of `images` images for every caption, and rerank the `depth` nearest."""
    manifest = read_manifest(index)
    searcher = Searcher(index, manifest, open_neighbours(index, manifest), encoder)
    found = searcher.search_vectors(captions.vectors, max(depth, MOST_HITS))
    plain, again = (np.full((len(found), 1), NO_RANK, np.int64) for _ in range(2))
    queries = zip(found, captions.texts, captions.image_rows.tolist(), strict=True)
    for place, (hits, text, own) in enumerate(
        tqdm(queries, "rerank", len(found), unit="query", disable=None)
    ):
        plain[place] = find_rank(hits, own)
        again[place] = find_rank([*searcher.rerank(text, hits[:depth]), *hits[depth:]], own)
    gains = {cutoff: _compare_hits(plain, again, captions.image_rows, cutoff) for cutoff in CUTOFFS}
    one = np.ones(len(found), np.int64)
    return RerankReport(
        depth,
        report_ranks(plain, one, images, complete=False),
        report_ranks(again, one, images, complete=False),
        {cutoff: gain for cutoff, (gain, _) in gains.items()},
        {cutoff: error for cutoff, (_, error) in gains.items()},
    )


def _compare_hits(plain: IntArray, again: IntArray, owners: IntArray, cutoff: int) -> tuple[float, float]:
    """The gain in hit@cutoff, and its standard error, clustered by image."""
    hit, was_hit = ((ranks[:, 0] != NO_RANK) & (ranks[:, 0] <= cutoff) for ranks in (again, plain))
    gains = hit.astype(np.float64) - was_hit
    _, groups = np.unique(owners, return_inverse=True)
    residuals = np.bincount(groups, gains - gains.mean())  # for each image, summed over its captions
    return float(gains.mean()), float(np.sqrt(np.square(residuals).sum()) / len(gains))


def describe_reranking(report: RerankReport) -> str:
    """One line for each cutoff, in per cent."""
    lines = [f"text to image, the {report.depth} nearest ranked again by their stored tokens:"]
    for cutoff in CUTOFFS:
        before, after = (100 * each.hits[cutoff] for each in (report.plain, report.again))
        gain, error = 100 * report.gains[cutoff], 100 * report.errors[cutoff]
        lines.append(
            f"hit@{cutoff:<3} {before:6.2f} to {after:6.2f}, {gain:+.2f} (standard error {error:.2f})"
        )
    return "\n".join(lines)
