"""Question files in their published formats, written by the tests."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.questions import TASKS, Source, keep_answerable, read_questions
from benchmarks.scenes import write_scenes
from encoders.base import DatasetError

VQAV2: dict[str, Any] = {
    "data_subtype": "val2014",
    "questions": [{"image_id": 42, "question": "What is it?", "question_id": 42000}],
}
VQAV2_ANSWERS: dict[str, Any] = {
    "annotations": [
        {
            "question_id": 42000,
            "image_id": 42,
            "answer_type": "other",
            "answers": [{"answer": word, "answer_id": 1} for word in ("dog", "puppy")],
        }
    ]
}
GQA = {
    "201": {"imageId": "n16", "question": "Is it red?", "answer": "yes", "types": {"structural": "verify"}}
}
POPE = {"question_id": 1, "image": "COCO_1.jpg", "text": "Is there a dog in the image?", "label": "yes"}
TEXTVQA = {"data": [{"image_id": "00a", "question": "which brand?", "answers": ["nokia", ""]}]}


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


def read_one(
    task: str, questions: Path, annotations: Path | None = None
) -> tuple[str, str, tuple[str, ...], str]:
    (question,) = read_questions(task, Source(questions, annotations, questions.parent))
    return question.image.name, question.text, question.answers, question.kind


def test_vqav2_joins_questions_with_their_answers(tmp_path: Path) -> None:
    questions, answers = write(tmp_path / "q.json", VQAV2), write(tmp_path / "a.json", VQAV2_ANSWERS)
    expected = ("COCO_val2014_000000000042.jpg", "What is it?", ("dog", "puppy"), "other")
    assert read_one("vqav2", questions, answers) == expected


def test_gqa_pope_and_textvqa_are_read_as_published(tmp_path: Path) -> None:
    assert read_one("gqa", write(tmp_path / "gqa.json", GQA)) == ("n16.jpg", "Is it red?", ("yes",), "verify")
    assert read_one("pope", write(tmp_path / "coco_pope_random.json", POPE)) == (
        "COCO_1.jpg",
        "Is there a dog in the image?",
        ("yes",),
        "coco_pope_random",
    )
    textvqa = read_one("textvqa", write(tmp_path / "textvqa.json", TEXTVQA))
    assert textvqa == ("00a.jpg", "which brand?", ("nokia", ""), "textvqa")


def test_mme_is_a_folder_of_subtasks_in_either_layout(tmp_path: Path) -> None:
    for place, picture in (
        ("count/1.txt", "count/1.jpg"),
        ("posters/questions_answers_YN/2.txt", "posters/images/2.png"),
    ):
        for name in (place, picture):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / picture).write_bytes(b"")
        (tmp_path / place).write_text("Is it? Please answer yes or no.\tYes\nOr not?\tNo\n")
    questions = read_questions("mme", Source(tmp_path, None, tmp_path))
    assert [
        (each.image.relative_to(tmp_path).as_posix(), each.kind, each.answers[0]) for each in questions
    ] == [
        ("count/1.jpg", "count", "yes"),
        ("count/1.jpg", "count", "no"),
        ("posters/images/2.png", "posters", "yes"),
        ("posters/images/2.png", "posters", "no"),
    ]
    assert questions[0].text == "Is it? Please answer yes or no."


def test_scenes_are_read_as_they_are_written(tmp_path: Path) -> None:
    write_scenes(tmp_path, 2, seed=1, size=48)
    questions = read_questions("scenes", Source(tmp_path / "scenes.jsonl", None, tmp_path))
    assert {"how many", "is there"} <= {question.kind for question in questions}
    assert keep_answerable(questions, tmp_path, allow_missing=False) == (questions, 0)


def test_a_missing_photo_counts_once_and_takes_its_questions_along(tmp_path: Path) -> None:
    records = [POPE | {"image": name} for name in ("there.jpg", "gone.jpg", "gone.jpg")]
    path = tmp_path / "pope.json"
    path.write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "there.jpg").write_bytes(b"")
    questions = read_questions("pope", Source(path, None, tmp_path))
    with pytest.raises(DatasetError, match=r"1 of 2 photos .*gone.jpg"):
        keep_answerable(questions, tmp_path, allow_missing=False)
    assert keep_answerable(questions, tmp_path, allow_missing=True) == (questions[:1], 1)


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    for task, data in (
        ("pope", POPE | {"image": "../x.jpg"}),
        ("gqa", {"1": GQA["201"] | {"imageId": "../x"}}),
    ):
        with pytest.raises(DatasetError, match="plain path"):
            read_one(task, write(tmp_path / "q.json", data))


@pytest.mark.parametrize("task", [task for task in TASKS if task != "mme"])
@pytest.mark.parametrize(
    "data", [[], {}, {"data": [3]}, {"data": [{"image_id": 3}]}, {"1": 2}, {"questions": {}}]
)
def test_a_file_of_another_form_is_one_sentence(task: str, data: object, tmp_path: Path) -> None:
    questions = write(tmp_path / "q.json", data)
    with pytest.raises(DatasetError) as caught:
        read_one(task, questions, questions if task == "vqav2" else None)
    assert "\n" not in str(caught.value) and str(questions) in str(caught.value)


def test_two_files_of_different_splits_do_not_join(tmp_path: Path) -> None:
    questions, answers = write(tmp_path / "q.json", VQAV2), write(tmp_path / "a.json", {"annotations": []})
    with pytest.raises(DatasetError, match="42000"):
        read_one("vqav2", questions, answers)


def test_answers_are_given_in_a_file_of_their_own_for_vqav2_alone(tmp_path: Path) -> None:
    questions = write(tmp_path / "q.json", GQA)
    with pytest.raises(DatasetError, match="its answers"):
        read_one("vqav2", questions)
    with pytest.raises(DatasetError, match="stand with its questions"):
        read_one("gqa", questions, questions)


@pytest.mark.parametrize("text", ["no tab\n", "Is it?\tPerhaps\n", ""])
def test_an_mme_folder_of_another_form_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "count").mkdir()
    (tmp_path / "count" / "1.txt").write_text(text)
    with pytest.raises(DatasetError, match=r"MME|yes or no|no question"):
        read_questions("mme", Source(tmp_path, None, tmp_path))
