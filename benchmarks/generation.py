"""Captions and answers generated from stored summary tokens, compared with those from the photos themselves.

    python -m benchmarks.generation --dataset dataset_flickr8k.json --images DIR --json FILE
    python -m benchmarks.generation --task pope --dataset coco_pope_random.json --images val2014 --model DIR

`--task captions` scores captions with `benchmarks.caption_metrics`, and measures the cross-entropy of human
captions (nats per token), also given another photo's tokens: the difference shows how much the tokens say
about their photo. The other tasks ask the questions that `benchmarks.questions` reads; `benchmarks.answers`
scores the answers by each benchmark's published rule.

Texts are generated from the tokens as the encoder gives them (float32), as float16 and int8 (as an index
stores them), and from the pixels: there pass 2's adapter reads all image tokens, which it was not trained on.
The upper bound is the stock LVLM on the pixels, `--model lvlm:NAME`. Decoding is greedy, up to 48 tokens.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.answers import Report, render_report, score_answers
from benchmarks.caption_metrics import WORDNET_COMMAND, load_tokenizer, score_captions
from benchmarks.command import (
    SplitRecord,
    add_dataset_options,
    describe_missing,
    describe_run,
    make_parser,
    read_split,
    refuse_overwriting,
    run_command,
    write_result,
)
from benchmarks.datasets import CaptionedImage
from benchmarks.embedding import decode_pictures, embed_images, match_captions
from benchmarks.questions import TASKS, Question, Source, keep_answerable, read_questions
from benchmarks.speaking import (
    FORMS,
    TOKEN_FORMS,
    answer_about_pictures,
    caption_pictures,
    choose_forms,
    store_summaries,
)
from benchmarks.text_table import render_rows
from encoders.base import CannotAnswer, DatasetError, Encoder, can_talk
from encoders.load import load_encoder

_MODULE = "benchmarks.generation"
_CAPTIONS = "captions"


@dataclass(frozen=True)
class CaptionFigures:
    """Scores of `benchmarks.caption_metrics`, with the standard error of CIDEr-D."""

    cider_d: float
    cider_d_error: float
    bleu_4: float
    rouge_l: float
    meteor: float | None


@dataclass(frozen=True)
class CaptionResult:
    """Scores by form; if there are tokens, cross-entropy by form, and its ratio to that of float32 tokens."""

    data: SplitRecord
    instruction: str
    scores: dict[str, CaptionFigures]
    cross_entropy: dict[str, float] | None
    ratio: dict[str, float] | None


@dataclass(frozen=True)
class AnswerResult:
    """The task, the number of questions and photos asked about, of photos missing, and the scores by form."""

    task: str
    dataset: str
    instruction: str
    questions: int
    images: int
    missing: int
    scores: dict[str, Report]


def measure_captions(
    encoder: Encoder, images: Sequence[CaptionedImage], forms: Sequence[str], instruction: str = ""
) -> dict[str, CaptionFigures]:
    """Caption every image, with the model's own prompt or an instruction, and score the captions by form."""
    paths = [image.path for image in images]
    if instruction:
        said = answer_about_pictures(encoder, paths, [[instruction]] * len(paths), forms)
    else:
        said = caption_pictures(encoder, paths, forms)
    return {form: _score_captions(captions, images) for form, captions in said.items()}


def measure_answers(
    encoder: Encoder, task: str, questions: Sequence[Question], forms: Sequence[str], instruction: str
) -> dict[str, Report]:
    """Ask every question, followed by a line with the instruction if given, and score the answers."""
    by_image: dict[Path, list[Question]] = {}
    for question in questions:
        by_image.setdefault(question.image, []).append(question)
    asked = [
        [f"{each.text}\n{instruction}" if instruction else each.text for each in group]
        for group in by_image.values()
    ]
    ordered = [question for group in by_image.values() for question in group]
    said = answer_about_pictures(encoder, list(by_image), asked, forms)
    return {form: score_answers(task, ordered, answers) for form, answers in said.items()}


def measure_cross_entropy(encoder: Encoder, images: Sequence[CaptionedImage]) -> dict[str, float]:
    """Mean cross-entropy of all captions, in nats per token, by the form of the tokens given."""
    if not can_talk(encoder):
        raise CannotAnswer(f"{encoder.name} keeps no summary tokens, so it gives no caption a likelihood.")
    if len(images) < 2:
        raise DatasetError("One image has no other photo's tokens to be compared with: give two or more.")
    pictures = decode_pictures((image.path for image in images), encoder.image_size)
    batches = [batch.summaries for batch in embed_images(encoder, pictures, len(images))]
    summaries = np.concatenate([batch for batch in batches if batch is not None])
    found = {form: match_captions(encoder, store_summaries(summaries, form), images) for form in TOKEN_FORMS}
    return found | {"another photo's": match_captions(encoder, np.roll(summaries, 1, axis=0), images)}


def compare_forms(cross_entropy: dict[str, float]) -> dict[str, float]:
    """The ratio of each cross-entropy to that of the float32 tokens."""
    return {form: value / cross_entropy[TOKEN_FORMS[0]] for form, value in cross_entropy.items()}


def render_captions(result: CaptionResult) -> str:
    """Scores times 100, as papers print them; below, cross-entropy."""
    header = ["from", "CIDEr-D", "+-", "BLEU-4", "ROUGE-L", "METEOR"]
    rows = [
        [form, *(_times_hundred(getattr(each, name)) for name in CaptionFigures.__dataclass_fields__)]
        for form, each in result.scores.items()
    ]
    table = render_rows(header, rows)
    if result.cross_entropy and result.ratio:
        rows = [
            [form, f"{value:.4f}", f"{result.ratio[form]:.4f}"]
            for form, value in result.cross_entropy.items()
        ]
        table += "\n\n" + render_rows(["people's captions", "nats a token", "ratio"], rows)
    return table


def render_answers(result: AnswerResult) -> str:
    """A line for each measure, a column for each form."""
    columns = [dict(render_report(report)) for report in result.scores.values()]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    return render_rows([result.task, *result.scores], rows)


def _score_captions(captions: Sequence[str], images: Sequence[CaptionedImage]) -> CaptionFigures:
    scores = score_captions(captions, [image.captions for image in images])
    each = np.array(scores.each_cider_d)
    error = float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else 0.0
    return CaptionFigures(scores.cider_d, error, scores.bleu_4, scores.rouge_l, scores.meteor)


def _times_hundred(score: float | None) -> str:
    return "-" if score is None else f"{100 * score:.2f}"


def _run_captions(encoder: Encoder, options: argparse.Namespace) -> CaptionResult:
    load_tokenizer()  # fails before hours of work, not after, if a package is missing
    forms = choose_forms(encoder, options.forms)
    images, record = read_split(options)
    cross_entropy = measure_cross_entropy(encoder, images) if can_talk(encoder) else None
    scores = measure_captions(encoder, images, forms, options.instruction)
    ratio = cross_entropy and compare_forms(cross_entropy)
    result = CaptionResult(record, options.instruction, scores, cross_entropy, ratio)
    print(render_captions(result))
    if any(each.meteor is None for each in scores.values()):
        print(f"METEOR needs NLTK's WordNet, which is not here: {WORDNET_COMMAND}", file=sys.stderr)
    return result


def _run_questions(encoder: Encoder, options: argparse.Namespace) -> AnswerResult:
    forms = choose_forms(encoder, options.forms)
    folder = options.images or (options.dataset if options.dataset.is_dir() else options.dataset.parent)
    asked = read_questions(options.task, Source(options.dataset, options.annotations, folder))
    questions, missing = keep_answerable(asked, folder, options.allow_missing)
    result = AnswerResult(
        options.task,
        options.dataset.name,
        options.instruction,
        len(questions),
        len({question.image for question in questions}),
        missing,
        measure_answers(encoder, options.task, questions, forms, options.instruction),
    )
    print(f"{result.questions:,} questions about {result.images:,} images{describe_missing(missing)},")
    print(f"by {encoder.name}\n\n{render_answers(result)}")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Captions, and answers to questions, from summary tokens and from pixels."""
    parser = make_parser(_MODULE, main.__doc__)
    add_dataset_options(parser)
    parser.add_argument("--task", choices=(_CAPTIONS, *TASKS), default=_CAPTIONS, help="(default: captions)")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="the answers of VQAv2, a file of their own"
    )
    parser.add_argument(
        "--forms", nargs="+", choices=FORMS, help="what to speak from (default: all that can be)"
    )
    parser.add_argument(
        "--instruction", default="", help="a line after each question; for captions, what is asked instead"
    )
    options = parser.parse_args(arguments)
    if options.split and options.task != _CAPTIONS:
        parser.error("--split is for captions: the files of questions have no splits")

    def measure() -> None:
        refuse_overwriting(options.json, options.force)
        encoder = load_encoder(options.model, device=options.device)
        run = _run_captions if options.task == _CAPTIONS else _run_questions
        write_result(options.json, describe_run(_MODULE, arguments, encoder), run(encoder, options))

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
