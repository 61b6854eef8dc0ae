"""The rules by which compositionality sets turn caption scores into right or wrong, and accuracy reports.

Ties count as wrong everywhere, except at VSR's threshold. Chance is the expected result of random scores,
except for VSR.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.intervals import Interval, find_wilson_interval
from benchmarks.readers.composition import Composition
from encoders.base import FloatArray

ACCURACY = "accuracy"
SCENES = "scenes"


class Scores(NamedTuple):
    """For each composition: (pictures, captions) and, if texts can be compared, (captions, captions)."""

    matches: Sequence[FloatArray]
    texts: Sequence[FloatArray] | None


class Judgement(NamedTuple):
    """Which compositions are judged right: bool (n,), and the fraction that chance gets right."""

    right: NDArray[np.bool_]
    chance: float


@dataclass(frozen=True)
class AccuracyReport:
    """The fraction judged right, overall and by kind, with Wilson's 95 % intervals and counts.

    mean_of_kinds: the unweighted mean over kinds; compositions without a kind are left out.
    """

    accuracy: float
    interval: Interval
    count: int
    chance: float
    mean_of_kinds: float
    by_kind: dict[str, float]
    intervals: dict[str, Interval]
    counts: dict[str, int]


def report_accuracy(kinds: Sequence[str], judgement: Judgement) -> AccuracyReport:
    """Summarise a judgement; its i-th composition has the kind kinds[i]."""
    right, names = judgement.right, np.array(kinds)
    by_kind = {kind: right[names == kind] for kind in sorted({*kinds} - {""})}
    shares = {kind: float(each.mean()) for kind, each in by_kind.items()}
    return AccuracyReport(
        accuracy=float(right.mean()),
        interval=find_wilson_interval(int(right.sum()), len(right)),
        count=len(right),
        chance=judgement.chance,
        mean_of_kinds=float(np.mean(list(shares.values()) or right)),
        by_kind=shares,
        intervals={kind: find_wilson_interval(int(each.sum()), len(each)) for kind, each in by_kind.items()},
        counts={kind: len(each) for kind, each in by_kind.items()},
    )


def judge_choices(compositions: Sequence[Composition], scores: Scores) -> dict[str, Judgement]:
    """Right if every true caption scores higher than every false one."""
    return {ACCURACY: _judge_choices(compositions, scores)}


def judge_triplets(compositions: Sequence[Composition], scores: Scores) -> dict[str, Judgement]:
    """SugarCrepe++: with the image (ITT), and with the texts only (TOT).

    TOT is right if the true captions are more similar to each other than either is to the false one.
    """
    judged = {"image-text (ITT)": _judge_choices(compositions, scores)}
    if scores.texts is not None:
        right = [text[0, 1] > max(text[0, 2], text[1, 2]) for text in scores.texts]
        judged["text-only (TOT)"] = Judgement(np.array(right, bool), 1 / 3)
    return judged


def judge_groups(compositions: Sequence[Composition], scores: Scores) -> dict[str, Judgement]:
    """Winoground: text score (each image prefers its caption), image score (each caption its image), both."""
    table = np.stack(scores.matches)  # (n, 2 pictures, 2 captions)
    own = np.stack([table[:, 0, 0], table[:, 1, 1]])
    text = np.logical_and(*(own > np.stack([table[:, 0, 1], table[:, 1, 0]])))
    image = np.logical_and(*(own > np.stack([table[:, 1, 0], table[:, 0, 1]])))
    return {
        "text score": Judgement(text, 1 / 4),
        "image score": Judgement(image, 1 / 4),
        "group score": Judgement(text & image, 1 / 6),
    }


def judge_statements(compositions: Sequence[Composition], scores: Scores) -> dict[str, Judgement]:
    """VSR: a statement is judged true if it scores at least a threshold that was fitted on the other half.

    The halves are the even and the odd statements of the file, so no statement is judged by a threshold
    fitted on it. Chance is the accuracy of always giving the more frequent label.
    """
    values = np.array([match[0, 0] for match in scores.matches])
    labels = np.array([each.true == 1 for each in compositions])
    right = np.empty(len(labels), bool)
    for half in (np.arange(len(labels)) % 2 == 0, np.arange(len(labels)) % 2 == 1):
        threshold = find_threshold(values[~half], labels[~half])
        right[half] = (values[half] >= threshold) == labels[half]
    return {ACCURACY: Judgement(right, float(max(labels.mean(), 1 - labels.mean())))}


def find_threshold(values: FloatArray, labels: NDArray[np.bool_]) -> float:
    """The lowest threshold of highest accuracy, where true means a value at or above it."""
    order = np.argsort(values, kind="stable")
    ordered, truths = values[order], labels[order].astype(np.int64)
    # With the threshold at place i, the right ones are the false before it and the true from it on.
    right = (
        np.concatenate([[0], np.cumsum(1 - truths)]) + truths.sum() - np.concatenate([[0], np.cumsum(truths)])
    )
    starts = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])  # equal values are inseparable
    best = int(np.argmax(np.where(starts, right, -1)))
    return float(ordered[best]) if best < len(ordered) else np.inf


def _judge_choices(compositions: Sequence[Composition], scores: Scores) -> Judgement:
    right, chances = [], []
    for each, match in zip(compositions, scores.matches, strict=True):
        right.append(match[0, : each.true].min() > match[0, each.true :].max())
        chances.append(1 / comb(len(each.captions), each.true))
    return Judgement(np.array(right, bool), float(np.mean(chances)))


RULES: Mapping[str, Callable[[Sequence[Composition], Scores], dict[str, Judgement]]] = {
    SCENES: judge_choices,
    "sugarcrepe": judge_choices,
    "sugarcrepe++": judge_triplets,
    "winoground": judge_groups,
    "aro": judge_choices,
    "vsr": judge_statements,
}
