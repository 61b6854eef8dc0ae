"""Score answers to questions about images by each benchmark's published rule."""

import re
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from benchmarks.questions import Question

# Words often written without their apostrophe, which the VQA server restores.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've
    mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
    shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
    they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
    wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_MENDED = {
    word[:at] + word[at + 1 :]: word
    for word in _CONTRACTIONS.split()
    for at, sign in enumerate(word)
    if sign == "'"
}
_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERCEPTION = "existence count position color posters celebrity scene landmark artwork OCR"
_COGNITION = "commonsense_reasoning numerical_calculation text_translation code_reasoning"
_MME_GROUPS = {"perception": _PERCEPTION.split(), "cognition": _COGNITION.split()}


class Accuracy(NamedTuple):
    """Mean accuracy over all questions and by kind; counts are of questions."""

    accuracy: float
    by_kind: dict[str, float]
    counts: dict[str, int]


class YesNo(NamedTuple):
    """POPE's metrics, with "yes" as the positive class.

    precision is None if no answer is yes, recall if no question's true answer is.
    """

    accuracy: float
    precision: float | None
    recall: float | None
    f1: float
    yes_share: float
    questions: int


class MmeSubtask(NamedTuple):
    """accuracy: over questions. accuracy_plus: over images, which count if all their answers are right."""

    accuracy: float
    accuracy_plus: float
    questions: int
    images: int

    @property
    def score(self) -> float:
        """The subtask's score in MME: 200 at most."""
        return 100 * (self.accuracy + self.accuracy_plus)


class Mme(NamedTuple):
    """MME by subtask, and the total score of its two groups, over the subtasks that are present."""

    subtasks: dict[str, MmeSubtask]
    totals: dict[str, float]


Report = Accuracy | YesNo | Mme


def score_answers(task: str, questions: Sequence[Question], answers: Sequence[str]) -> Report:
    """Score answers[i] to questions[i] by the rule of a task of `benchmarks.questions.TASKS`."""
    if task == "pope":
        return score_yes_no(questions, answers)
    if task == "mme":
        return score_mme(questions, answers)
    rule = judge_vqa if task in ("vqav2", "textvqa") else judge_exactly
    return _average(questions, [rule(*pair) for pair in zip(answers, questions, strict=True)])


def judge_vqa(answer: str, question: Question) -> float:
    """VQA accuracy: an answer is fully right if at least three other annotators gave it.

    Each annotator is left out in turn, and min(1, same / 3) over the rest is averaged (Antol et al. 2015, as
    the VQA server computes it). Answers and references are normalised, references even if all agree.
    """
    said = normalize_answer(answer)
    same = [normalize_answer(reference) == said for reference in question.answers]
    return fmean(min(1.0, (sum(same) - each) / 3) for each in same)


def judge_exactly(answer: str, question: Question) -> float:
    """1 if the answer equals the reference, except for case, outer spaces and final full stops; for GQA."""
    return float(_trim(answer) in {_trim(reference) for reference in question.answers})


def normalize_answer(answer: str) -> str:
    """The VQA server's normal form: digits for number words, apostrophes, no articles, little punctuation."""
    text = " ".join(answer.split())
    between_digits = re.search(r"\d,\d", text) is not None
    plain = text
    for sign in _PUNCTUATION:
        beside_space = f"{sign} " in text or f" {sign}" in text
        plain = plain.replace(sign, "" if beside_space or between_digits else " ")
    words = re.sub(r"\.(?!\d)", "", plain).lower().split()
    numbered = (_NUMBERS.get(word, word) for word in words)
    return " ".join(_MENDED.get(word, word) for word in numbered if word not in _ARTICLES)


def score_yes_no(questions: Sequence[Question], answers: Sequence[str]) -> YesNo:
    """POPE's scores; an answer means no if its first sentence contains the word no or not, else yes."""
    said = [_hear_no_or_yes(answer) == "yes" for answer in answers]
    true = [_trim(question.answers[0]) == "yes" for question in questions]
    hits = sum(one and other for one, other in zip(said, true, strict=True))
    return YesNo(
        accuracy=fmean(one == other for one, other in zip(said, true, strict=True)),
        precision=hits / sum(said) if any(said) else None,
        recall=hits / sum(true) if any(true) else None,
        f1=2 * hits / (sum(said) + sum(true)) if any(said) or any(true) else 0.0,
        yes_share=fmean(said),
        questions=len(questions),
    )


def score_mme(questions: Sequence[Question], answers: Sequence[str]) -> Mme:
    """MME's scores; an answer counts as yes or no by its first four letters, and is wrong without either."""
    right: dict[str, dict[str, list[bool]]] = {}
    for question, answer in zip(questions, answers, strict=True):
        images = right.setdefault(question.kind, {})
        images.setdefault(question.image.name, []).append(_hear_start(answer) == _trim(question.answers[0]))
    subtasks = {
        kind: MmeSubtask(
            accuracy=fmean(each for both in images.values() for each in both),
            accuracy_plus=fmean(all(both) for both in images.values()),
            questions=sum(map(len, images.values())),
            images=len(images),
        )
        for kind, images in right.items()
    }
    return Mme(subtasks, {name: _sum_scores(subtasks, group) for name, group in _MME_GROUPS.items()})


def render_report(report: Report) -> list[tuple[str, str]]:
    """The lines to print of a report: names and figures, in per cent except for MME's totals."""
    if isinstance(report, Accuracy):
        rows = {"all": report.accuracy} | report.by_kind
        return [(name, f"{100 * value:.2f}") for name, value in rows.items()]
    if isinstance(report, YesNo):
        shares = report._asdict()
        del shares["questions"]
        return [(name, "-" if share is None else f"{100 * share:.2f}") for name, share in shares.items()]
    lines = [(name, f"{100 * each.accuracy:.2f}") for name, each in report.subtasks.items()]
    lines += [(f"{name} plus", f"{100 * each.accuracy_plus:.2f}") for name, each in report.subtasks.items()]
    return [*lines, *((f"{name} score", f"{total:.1f}") for name, total in report.totals.items())]


def _average(questions: Sequence[Question], marks: Sequence[float]) -> Accuracy:
    by_kind: dict[str, list[float]] = {}
    for question, mark in zip(questions, marks, strict=True):
        by_kind.setdefault(question.kind, []).append(mark)
    kinds = sorted(by_kind)
    return Accuracy(
        accuracy=fmean(marks),
        by_kind={kind: fmean(by_kind[kind]) for kind in kinds},
        counts={kind: len(by_kind[kind]) for kind in kinds},
    )


def _sum_scores(subtasks: dict[str, MmeSubtask], group: Sequence[str]) -> float:
    return sum(subtasks[name].score for name in group if name in subtasks)


def _hear_no_or_yes(answer: str) -> str:
    words = answer.partition(".")[0].replace(",", "").split()
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def _hear_start(answer: str) -> str:
    start = answer.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "neither"


def _trim(text: str) -> str:
    return text.strip().rstrip(".").lower()
