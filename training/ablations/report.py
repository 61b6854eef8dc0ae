"""Report trials as a table, and whether they agree with the paper's findings: computed, never typed in."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from encoders.base import DatasetError
from training.ablations.measures import Floats, Measure, average
from training.ablations.trial import Trial
from training.ablations.variants import JOINT

Trials = Mapping[str, Sequence[Trial]]  # by variant name, one per seed

_BEGIN, _END = "<!-- ablations: written by training.ablate -->", "<!-- ablations: end -->"
_ERRORS = 2.0  # standard errors from which a difference counts
RECALL, NATS = "recall@10", "cross_entropy"
_LOWER_IS_BETTER = {NATS}
_COLUMNS = {
    "recall@1": "R@1",
    "recall@5": "R@5",
    RECALL: "R@10",
    "image to text recall@10": "R@10, image to text",
    NATS: "nats a token",
    "cider_d": "CIDEr-D",
}


class Comparison(NamedTuple):
    """A claim that one variant is better than another, and the figures to test it on.

    finding: what arXiv 2503.21757 found; empty if it published nothing on this.
    """

    finding: str
    better: str
    worse: str
    figures: tuple[str, ...] = (RECALL, NATS)


_LOSSES = "both losses are better than either alone, on both tasks"
_ADAPTERS = "an adapter for each pass is better"
_FORWARD = "two forwards are better than one"
_TOKENS = "more tokens are better"
COMPARISONS = (
    Comparison(_LOSSES, JOINT, "contrastive_only"),
    Comparison(_LOSSES, JOINT, "answer_only"),
    Comparison(f"{_ADAPTERS} than one for both", JOINT, "shared_adapter"),
    Comparison(f"{_ADAPTERS} than to train the LLM", JOINT, "whole_llm"),
    Comparison("", JOINT, "no_adapters"),
    Comparison(_FORWARD, JOINT, "single_forward"),
    Comparison("", "k2", "k1"),
    Comparison(_TOKENS, "k4", "k2"),
    Comparison(_TOKENS, JOINT, "k4"),
    Comparison(_TOKENS, "k16", JOINT),
    Comparison(_TOKENS, "k32", "k16"),
    Comparison("", JOINT, "last_token"),
    Comparison("", JOINT, "attention"),
    Comparison("", "uncompressed", JOINT, (NATS, "cider_d")),
)


def find_spread(trials: Trials, figure: str) -> float:
    """The variance of a figure between seeds, pooled over all variants that have several."""
    seeds = [[np.mean(row) for row in _list_values(each, figure)] for each in trials.values()]
    several = [each for each in seeds if len(each) > 1]
    squares = sum(float(np.var(each)) * len(each) for each in several)
    return squares / sum(len(each) - 1 for each in several) if several else 0.0


def combine(trials: Trials, name: str, figure: str) -> Measure | None:
    """The mean of a variant over photos and seeds; its error covers photos (the same for all) and seeds."""
    values = _list_values(trials.get(name, []), figure)
    if not len(values):
        return None
    return average(values.mean(axis=0), find_spread(trials, figure) / len(values))


def find_advantage(trials: Trials, better: str, worse: str, figure: str) -> Measure | None:
    """By how much `better` exceeds `worse`, with its error; None if one of them lacks the figure.

    They are compared photo by photo and on common seeds, so the error is that of the difference.
    """
    seeds = {each.seed for each in trials.get(better, [])} & {each.seed for each in trials.get(worse, [])}
    one, other = (
        _list_values([each for each in trials.get(name, []) if each.seed in seeds], figure)
        for name in (better, worse)
    )
    if not len(one) or not len(other):
        return None
    sign = -1 if figure in _LOWER_IS_BETTER else 1
    spread = find_spread(trials, figure) * (1 / len(one) + 1 / len(other))
    return average(sign * (one.mean(axis=0) - other.mean(axis=0)), spread)


def _list_values(trials: Sequence[Trial], figure: str) -> Floats:
    """The values (seeds, photos) of a figure; without seeds if the variant lacks it."""
    return np.array([each.measures.figures[figure] for each in trials if figure in each.measures.figures])


def is_close(trials: Trials, name: str) -> bool:
    """Whether a variant is within two standard errors of `joint`, in recall@10 or in cross-entropy."""
    found = [find_advantage(trials, name, JOINT, figure) for figure in (RECALL, NATS)]
    return any(each is not None and not _is_difference(each) for each in found)


def judge(finding: str, advantage: Measure) -> str:
    """The verdict of a difference on a finding: agrees, disagrees, undecided or not published."""
    if not finding:
        return "not published"
    if not _is_difference(advantage):
        return "undecided"
    return "agrees" if advantage.value > 0 else "disagrees"


def _is_difference(measure: Measure) -> bool:
    """A difference of 0 never counts, even with an error of 0, as between two variants that find nothing."""
    return measure.value != 0 and abs(measure.value) >= _ERRORS * measure.error


def render_report(trials: Trials, heading: str) -> str:
    """Markdown: a row for each variant, then one for each comparison that could be made."""
    tables = [*_render_variants(trials), "", *_render_findings(trials), *_render_compression(trials)]
    return "\n".join([_BEGIN, heading, "", *tables, _END])


def write_report(path: Path, report: str) -> None:
    """Replace the previous report in a file, or append the report at the end."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except OSError as error:
        raise DatasetError(f"{path} cannot be read as a report: {error}") from error
    before, begun, rest = text.partition(_BEGIN)
    _, ended, after = rest.partition(_END)
    if begun and not ended:
        raise DatasetError(f"{path} holds {_BEGIN!r} without {_END!r}: put the second after the report")
    text = before + report + after if begun else text.rstrip("\n") + f"\n\n{report}\n"
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text.lstrip("\n"), encoding="utf-8")
    temporary.replace(path)


def _render_variants(trials: Trials) -> list[str]:
    head = ["variant", "seeds", *_COLUMNS.values(), "bytes an image", "trained weights", "images/s"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, each in trials.items():
        figures = [_show(combine(trials, name, figure)) for figure in _COLUMNS]
        speed = f"{np.mean([trial.images_per_second for trial in each]):.0f}"
        first = each[0]
        counts = [f"{first.measures.bytes_an_image:,}", f"{first.trained_weights:,}", speed]
        lines.append(_row([f"`{name}`", str(len(each)), *figures, *counts]))
    return lines


def _render_findings(trials: Trials) -> list[str]:
    head = ["arXiv 2503.21757", "here", "better by", "the finding"]
    lines = [_row(head), _row(["---"] * len(head))]
    for finding, better, worse, figures in COMPARISONS:
        for figure in figures:
            advantage = find_advantage(trials, better, worse, figure)
            if advantage is not None:
                pair = f"`{better}` over `{worse}`, {_COLUMNS[figure]}"
                lines.append(_row([finding or "-", pair, _show(advantage), judge(finding, advantage)]))
    return lines


def _render_compression(trials: Trials) -> list[str]:
    """Cross-entropy of captions given k summary tokens, relative to that given the image tokens."""
    names, whole = ("k1", "k2", "k4", JOINT, "k16", "k32"), combine(trials, "uncompressed", NATS)
    costs = {name: find_advantage(trials, "uncompressed", name, NATS) for name in names}
    shares = [
        f"`{name}` {1 + cost.value / whole.value:.3f}" for name, cost in costs.items() if cost and whole
    ]
    return ["", f"Nats a token over those of `uncompressed`: {', '.join(shares)}."] if shares else []


def _show(measure: Measure | None) -> str:
    if measure is None:
        return "-"
    digits = 1 if measure.error >= 0.1 else 3
    return f"{measure.value:.{digits}f} ± {measure.error:.{digits}f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
