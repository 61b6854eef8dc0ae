"""Compositionality: can a model tell a true caption from false ones that differ only slightly?

    python -m benchmarks.compositionality [--count 1000 --seed 2] --json out.json
    python -m benchmarks.compositionality --form sugarcrepe --dataset DIR --images val2017 --json out.json

Reads SugarCrepe, SugarCrepe++, Winoground, ARO and VSR in their published formats (see benchmarks/readers/),
and judges each by its own rule (see `benchmarks.judging`). Without --dataset, it draws scenes, and also
measures their recall by captions. Captions are scored by cosine with the image and, if the encoder can
generate text, by likelihood in pass 2 given stored (int8) summary tokens. Ties count as wrong. Accuracies
come with Wilson's 95 % intervals, counts and chance levels.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command import (
    at_least,
    describe_missing,
    describe_run,
    make_parser,
    refuse_overwriting,
    run_command,
    write_result,
)
from benchmarks.composition_scores import (
    EmbeddedPictures,
    embed_pictures,
    score_by_embedding,
    score_by_likelihood,
)
from benchmarks.compositions import PARSERS, CompositionRecord, load_picture, read_compositions
from benchmarks.judging import RULES, SCENES, AccuracyReport, Scores, report_accuracy
from benchmarks.readers.composition import Composition, Picture
from benchmarks.scene_compositions import (
    SceneRecall,
    draw_picture,
    make_scene_compositions,
    measure_scene_recall,
    name_scenes,
)
from benchmarks.text_table import render_rows, show_percent
from encoders.base import Encoder
from encoders.load import load_encoder

_MODULE = "benchmarks.compositionality"


@dataclass(frozen=True)
class CompositionalityResult:
    """Accuracy by measure, for both scores; generative: None if the encoder cannot generate text."""

    data: CompositionRecord
    embedding: dict[str, AccuracyReport]
    generative: dict[str, AccuracyReport] | None
    scenes: SceneRecall | None


def measure_scenes(encoder: Encoder, count: int, seed: int) -> CompositionalityResult:
    """Draw scenes 0 to count - 1 of the series `seed`, and measure accuracy and recall on them."""
    scenes = name_scenes(count, seed)
    compositions = make_scene_compositions(scenes)
    embedded = embed_pictures(encoder, map(draw_picture, scenes.values()), count)
    judged = _judge_twice(encoder, SCENES, compositions, list(scenes), embedded)
    record = CompositionRecord(f"series {seed}", SCENES, len(compositions), count, 0)
    return CompositionalityResult(record, *judged, measure_scene_recall(encoder, scenes, embedded.vectors))


def measure_published(
    encoder: Encoder, compositions: Sequence[Composition], record: CompositionRecord
) -> CompositionalityResult:
    """Measure accuracy on a published set."""
    pictures = list(dict.fromkeys(picture for each in compositions for picture in each.pictures))
    images = (load_picture(picture, encoder.image_size) for picture in pictures)
    embedded = embed_pictures(encoder, images, len(pictures))
    judged = _judge_twice(encoder, record.form, compositions, pictures, embedded)
    return CompositionalityResult(record, *judged, scenes=None)


def _judge_twice(
    encoder: Encoder,
    form: str,
    compositions: Sequence[Composition],
    pictures: Sequence[Picture],
    embedded: EmbeddedPictures,
) -> tuple[dict[str, AccuracyReport], dict[str, AccuracyReport] | None]:
    """Accuracy by embedding and by likelihood; row i of `embedded` belongs to pictures[i]."""
    rows = {picture: row for row, picture in enumerate(pictures)}
    kinds = [each.kind for each in compositions]

    def report(scores: Scores) -> dict[str, AccuracyReport]:
        judged = RULES[form](compositions, scores)
        return {measure: report_accuracy(kinds, judgement) for measure, judgement in judged.items()}

    likelihoods = score_by_likelihood(encoder, compositions, rows, embedded.tokens)
    return (
        report(score_by_embedding(encoder, compositions, rows, embedded.vectors)),
        None if likelihoods is None else report(likelihoods),
    )


def render_table(result: CompositionalityResult) -> str:
    """Recall of scenes, then accuracy by measure and kind, both scores side by side, in per cent."""
    lines = [] if result.scenes is None else [*_render_recall(result.scenes), ""]
    rows = []
    for measure, report in result.embedding.items():
        other = (result.generative or {}).get(measure)
        rows.append(_render_share(f"{measure}, all", report, other, None))
        if len(report.by_kind) > 1:
            rows += [_render_share(f"  {kind}", report, other, kind) for kind in report.by_kind]
            means = [show_percent(report.mean_of_kinds), show_percent(other.mean_of_kinds) if other else "-"]
            rows.append([f"{measure}, mean of kinds", *means, show_percent(report.chance), ""])
    header = ["", "by embedding (95 % interval)", "by likelihood (95 % interval)", "chance", "count"]
    return "\n".join([*lines, render_rows(header, rows)])


def _render_recall(scenes: SceneRecall) -> list[str]:
    recall = scenes.recall
    lines = [f"{scenes.unique_captions:,} captions name one of {scenes.scenes:,} scenes uniquely"]
    lines += [
        f"  hit@{cutoff:<4}{show_percent(hit):>7}   chance {show_percent(recall.chance[cutoff]):>5}"
        for cutoff, hit in recall.hits.items()
    ]
    return [*lines, f"  median rank {recall.median_rank:g}"]


def _render_share(
    title: str, report: AccuracyReport, other: AccuracyReport | None, kind: str | None
) -> list[str]:
    cells = []
    for each in (report, other):
        if each is None:
            cells.append("-")
            continue
        share = each.accuracy if kind is None else each.by_kind[kind]
        low, high = each.interval if kind is None else each.intervals[kind]
        cells.append(f"{show_percent(share)} ({show_percent(low)} to {show_percent(high)})")
    count = report.count if kind is None else report.counts[kind]
    return [title, *cells, show_percent(report.chance), f"{count:,}"]


def add_options(parser: ArgumentParser) -> None:
    """Add the options that only this benchmark has."""
    parser.add_argument(
        "--form",
        choices=(SCENES, *PARSERS),
        default=SCENES,
        help="the form of --dataset (default: %(default)s)",
    )
    parser.add_argument("--dataset", type=Path, help="the set's file, or the folder of its published files")
    parser.add_argument("--images", type=Path, help="the folder of the photos (default: where --dataset is)")
    parser.add_argument(
        "--allow-missing", action="store_true", help="go on without photos that are not there"
    )
    parser.add_argument("--count", type=at_least(1), default=1000, help="scenes to draw")
    parser.add_argument(
        "--seed",
        type=at_least(0),
        default=2,
        help="the series of scenes; the embedded model learned from 1, 3, 4 and 8",
    )


def measure(options: Namespace, load: Callable[[], Encoder]) -> tuple[Encoder, CompositionalityResult]:
    """Measure what the options ask for; files are read before the model is loaded."""
    if options.form == SCENES:
        encoder = load()
        return encoder, measure_scenes(encoder, options.count, options.seed)
    place = options.dataset
    images_dir = options.images or (place if place.is_dir() else place.parent)
    compositions, record = read_compositions(options.form, place, images_dir, options.allow_missing)
    encoder = load()
    return encoder, measure_published(encoder, compositions, record)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure how well true captions are told from similar false ones, on published sets or drawn scenes."""
    parser = make_parser(_MODULE, main.__doc__)
    add_options(parser)
    options = parser.parse_args(arguments)
    if (options.dataset is None) != (options.form == SCENES):
        parser.error("--dataset needs the --form of its file, and every form but scenes needs a --dataset")
    if options.form == SCENES and (options.images or options.allow_missing):
        parser.error("scenes are drawn: --images and --allow-missing are for the photos of a --dataset")

    def run() -> None:
        refuse_overwriting(options.json, options.force)
        encoder, result = measure(options, lambda: load_encoder(options.model, device=options.device))
        data = result.data
        print(
            f"{data.dataset}, {data.form}: {data.compositions:,} compositions of {data.pictures:,} pictures"
            f"{describe_missing(data.missing)}"
        )
        print(f"by {encoder.name}; per cent\n")
        print(render_table(result))
        seed = options.seed if options.form == SCENES else None
        write_result(options.json, describe_run(_MODULE, arguments, encoder, seed), result)

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
