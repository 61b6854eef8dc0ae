"""The scoring rules of VQAv2, GQA, POPE and MME, on answers judged by hand."""

from pathlib import Path

import pytest

from benchmarks.answers import Mme, normalize_answer, render_report, score_answers
from benchmarks.questions import Question


def ask(*references: str, image: str = "a.jpg", kind: str = "other") -> Question:
    return Question(Path(image), "what?", references, kind)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Two", "2"),
        ("none", "0"),
        ("The dog.", "dog"),
        ("an  apple\n", "apple"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("2.5 kg.", "2.5 kg"),
        ("1,000", "1000"),
        ("black,white", "black white"),
        ("black, white", "black white"),
        ("yes!", "yes"),
        ("t-shirt", "t shirt"),
        ("what? - me", "what me"),
        ("U.S.A.", "usa"),
    ],
)
def test_answers_are_normalised_as_the_vqa_server_does(answer: str, normal: str) -> None:
    assert normalize_answer(answer) == normal
    assert normalize_answer(normal) == normal


@pytest.mark.parametrize(("agree", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_is_that_of_the_answer_among_nine_of_ten_people(agree: int, accuracy: float) -> None:
    # One agreeing person is in nine of the ten subsets of nine people, and counts 1/3 in each: 0.3.
    question = ask(*["a Dog"] * agree, *["cat"] * (10 - agree))
    for task in ("vqav2", "textvqa"):
        assert score_answers(task, [question], ["dog."]).accuracy == pytest.approx(accuracy)


def test_accuracy_is_the_mean_over_questions_and_over_those_of_a_kind() -> None:
    questions = [ask("red", kind="query"), ask("yes", kind="verify"), ask("no", kind="verify")]
    report = score_answers("gqa", questions, [" Red.", "no", "No"])
    assert report.accuracy == pytest.approx(2 / 3)
    assert report.by_kind == {"query": 1.0, "verify": 0.5}
    assert report.counts == {"query": 1, "verify": 2}
    assert render_report(report) == [("all", "66.67"), ("query", "100.00"), ("verify", "50.00")]


def test_gqa_wants_the_very_word() -> None:
    assert score_answers("gqa", [ask("two")], ["2"]).accuracy == 0
    assert score_answers("gqa", [ask("dog")], ["a dog"]).accuracy == 0


def test_pope_counts_yes_as_found() -> None:
    labels = ["yes", "yes", "yes", "no", "no"]
    said = ["Yes, there is.", "yes", "No", "There is not. Yes.", "a dog"]
    report = score_answers("pope", [ask(label) for label in labels], said)
    # Two of three "yes" labels are found; "a dog", which is neither yes nor no, counts as a yes.
    assert report == (3 / 5, 2 / 3, 2 / 3, pytest.approx(2 / 3), 3 / 5, 5)


def test_a_precision_of_nothing_is_absent_and_not_zero() -> None:
    report = score_answers("pope", [ask("yes"), ask("no")], ["no", "no"])
    assert (report.precision, report.recall, report.f1) == (None, 0.0, 0.0)
    assert ("precision", "-") in render_report(report)


def test_mme_counts_questions_and_images_and_adds_up() -> None:
    pairs = [("a.jpg", "count"), ("b.jpg", "count"), ("a.jpg", "code_reasoning")]
    questions = [ask(label, image=image, kind=kind) for image, kind in pairs for label in ("yes", "no")]
    answers = ["Yes", "No.", "yes it is", "yes", "not sure", "perhaps"]
    report = score_answers("mme", questions, answers)
    assert isinstance(report, Mme)
    assert report.subtasks["count"] == (0.75, 0.5, 4, 2)
    assert report.subtasks["code_reasoning"] == (0.0, 0.0, 2, 1)
    assert report.totals == {"perception": 125.0, "cognition": 0.0}
    assert ("count plus", "50.00") in render_report(report)
