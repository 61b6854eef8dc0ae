"""Whether words are bound to the right things: rendered scenes, found by captions and told from false ones.

    python -m benchmarks.compositionality --count 1000 --seed 2 --json out.json

Recall counts only captions that are true of one scene of the gallery and of no other. A negative changes one
thing in the true caption and is false for certain; it is told from the true one where the true one scores
strictly higher, by cosine with the image and, for an encoder that talks, by likelihood given stored (int8)
summary tokens.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from benchmarks.command import describe_run, make_parser, refuse_overwriting, run_command, write_result
from benchmarks.embedding import embed_images, embed_texts, match_texts
from benchmarks.recall import RecallReport, report_recall
from benchmarks.scenes import (
    HardNegative,
    Scene,
    describe_fully,
    draw_scene,
    find_uniquely_named,
    hard_negatives,
    make_scene,
    unique_caption,
)
from encoders.base import Encoder, FloatArray, ImageEmbeddings, TalkingEncoder
from encoders.load import load_encoder
from indexer.quantize import dequantize_summaries, quantize_summaries

_MODULE = "benchmarks.compositionality"
_CUTOFFS = (1, 10)
_PICTURE_SIZE = 144
NEGATIVE_CHANCE = 0.5


@dataclass(frozen=True)
class NegativesReport:
    """The share of negatives told from the true caption, by kind and over all; chance is one half."""

    accuracy: float
    by_kind: dict[str, float]
    counts: dict[str, int]
    chance: float = NEGATIVE_CHANCE


@dataclass(frozen=True)
class CompositionalityResult:
    """What was measured; `generative` is None for an encoder that cannot talk."""

    scenes: int
    unique_captions: int
    recall: RecallReport
    embedding: NegativesReport
    generative: NegativesReport | None


def measure_compositionality(encoder: Encoder, count: int, seed: int) -> CompositionalityResult:
    """Draw scenes 0 to count - 1 of the series `seed` and measure all there is to measure."""
    scenes = [make_scene(seed, index) for index in range(count)]
    negatives = [hard_negatives(scene, Random(index)) for index, scene in enumerate(scenes)]
    captions = [unique_caption(scene) for scene in scenes]
    images = _embed_scenes(encoder, scenes)
    texts = embed_texts(encoder, captions)
    unique = np.array(find_uniquely_named(scenes, [describe_fully(scene) for scene in scenes]), np.int64)
    return CompositionalityResult(
        scenes=count,
        unique_captions=len(unique),
        recall=report_recall(texts[unique], images.vectors, unique, np.arange(count), _CUTOFFS),
        embedding=_judge_by_cosine(encoder, images.vectors, texts, negatives),
        generative=_judge_by_likelihood(encoder, images.summaries, captions, negatives),
    )


def report_negatives(kinds: Sequence[str], told: NDArray[np.bool_]) -> NegativesReport:
    """Average over negatives: told[i] says whether the i-th, of kinds[i], scored below its true caption."""
    by_kind = {kind: told[np.array(kinds) == kind] for kind in sorted(set(kinds))}
    return NegativesReport(
        accuracy=float(told.mean()),
        by_kind={kind: float(each.mean()) for kind, each in by_kind.items()},
        counts={kind: len(each) for kind, each in by_kind.items()},
    )


def render_table(result: CompositionalityResult) -> str:
    """Recall, then accuracy by kind, in percent, chance beside."""
    recall = result.recall
    lines = [f"{result.unique_captions:,} captions name one of {result.scenes:,} scenes uniquely"]
    lines += [
        f"  R@{cutoff:<27}{100 * rate:6.2f}   chance {100 * recall.chance[cutoff]:5.2f}"
        for cutoff, rate in recall.hits.items()
    ]
    lines += [f"  median rank {recall.median_rank:>24g}"]
    for title, report in (("embedding", result.embedding), ("generative", result.generative)):
        if report is not None:
            lines += [f"negatives told from the truth, {title} score"]
            rows = {"all": report.accuracy} | report.by_kind
            lines += [f"  {kind:<29}{100 * rate:6.2f}   chance 50.00" for kind, rate in rows.items()]
    return "\n".join(lines)


def _embed_scenes(encoder: Encoder, scenes: Sequence[Scene]) -> ImageEmbeddings:
    pictures = (draw_scene(scene, _PICTURE_SIZE) for scene in scenes)
    batches = list(embed_images(encoder, pictures, len(scenes)))
    summaries = [batch.summaries for batch in batches if batch.summaries is not None]
    vectors = np.concatenate([batch.vectors for batch in batches])
    return ImageEmbeddings(vectors, np.concatenate(summaries) if summaries else None)


def _judge_by_cosine(
    encoder: Encoder, images: FloatArray, texts: FloatArray, negatives: Sequence[list[HardNegative]]
) -> NegativesReport:
    rows, kinds, captions = _flatten(negatives)
    true_scores = (images * texts).sum(axis=1)[rows]
    false_scores = (images[rows] * embed_texts(encoder, captions)).sum(axis=1)
    return report_negatives(kinds, true_scores > false_scores)


def _judge_by_likelihood(
    encoder: Encoder,
    summaries: FloatArray | None,
    captions: Sequence[str],
    negatives: Sequence[list[HardNegative]],
) -> NegativesReport | None:
    if summaries is None or not isinstance(encoder, TalkingEncoder):
        return None
    stored = dequantize_summaries(*quantize_summaries(summaries))
    rows, kinds, false_captions = _flatten(negatives)
    true_scores = match_texts(encoder, stored, captions)[rows]
    return report_negatives(kinds, true_scores > match_texts(encoder, stored[rows], false_captions))


def _flatten(negatives: Sequence[list[HardNegative]]) -> tuple[list[int], list[str], list[str]]:
    """The row of its scene, the kind and the caption of each negative."""
    flat = [(row, *negative) for row, each in enumerate(negatives) for negative in each]
    return [row for row, _, _ in flat], [kind for _, kind, _ in flat], [caption for _, _, caption in flat]


def main(arguments: Sequence[str] | None = None) -> int:
    """Binding of attributes and relations, on rendered scenes."""
    parser = make_parser(_MODULE, main.__doc__)
    parser.add_argument("--count", type=int, default=1000, help="scenes in the gallery")
    parser.add_argument(
        "--seed", type=int, default=2, help="the series of scenes; the embedded model learned from series 1"
    )
    options = parser.parse_args(arguments)

    def measure() -> None:
        refuse_overwriting(options.json, options.force)
        encoder = load_encoder(options.model, device=options.device)
        result = measure_compositionality(encoder, options.count, options.seed)
        print(render_table(result))
        write_result(options.json, describe_run(_MODULE, arguments, encoder, options.seed), result)

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
