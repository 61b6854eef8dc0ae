"""Questions about images with human answers, in the formats in which the benchmarks are published.

vqav2    v2_OpenEnded_mscoco_val2014_questions.json and, as annotations, v2_mscoco_val2014_annotations.json
gqa      testdev_balanced_questions.json; images ID.jpg
pope     coco_pope_random.json, which is JSON lines; images as named there
textvqa  TextVQA_0.5.1_val.json; images ID.jpg
mme      the release's folder: a folder for each subtask, with pictures and a .txt for each picture
scenes   scenes.jsonl, as `python -m benchmarks.scenes` writes it
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.readers.base import (
    find_missing,
    join_below,
    read_json,
    read_json_lines,
    read_text_file,
    require_text,
)
from encoders.base import DatasetError

_PICTURES = (".jpg", ".png", ".jpeg")


class Question(NamedTuple):
    """A question about one image, the human answers, and the part of the benchmark it belongs to."""

    image: Path
    text: str
    answers: tuple[str, ...]
    kind: str


class Source(NamedTuple):
    """The files of a benchmark. annotations: VQAv2's answers, which are in a separate file; else None."""

    questions: Path
    annotations: Path | None
    images: Path


def read_questions(task: str, source: Source) -> list[Question]:
    """Read the questions of one of TASKS, whether or not the photos exist; raises DatasetError."""
    if (source.annotations is None) == (task == "vqav2"):
        remedy = (
            "its answers are a file of their own" if task == "vqav2" else "answers stand with its questions"
        )
        raise DatasetError(f"{task} with annotations {source.annotations} cannot be read: {remedy}.")
    questions = list(_READERS[task](source))
    if not questions:
        raise DatasetError(f"{source.questions} holds no question in the form of {task}.")
    return questions


def keep_answerable(
    questions: Sequence[Question], images_dir: Path, allow_missing: bool
) -> tuple[list[Question], int]:
    """The questions whose photos exist, and the number of missing photos; raises as `find_missing` does."""
    missing = find_missing([question.image for question in questions], images_dir, allow_missing)
    return [question for question in questions if question.image not in missing], len(missing)


def _read_vqav2(source: Source) -> Iterator[Question]:
    assert source.annotations is not None  # checked by `read_questions`
    asked, where = read_json(source.questions), str(source.questions)
    subtype = require_text(asked, "data_subtype", where)  # such as val2014
    answered = {
        _require_number(each, "question_id", str(source.annotations)): each
        for each in _list_records(read_json(source.annotations), "annotations", str(source.annotations))
    }
    for record in _list_records(asked, "questions", where):
        number = _require_number(record, "question_id", where)
        if number not in answered:
            raise DatasetError(f"{source.annotations} has no answers to question {number} of {where}.")
        answers = _list_records(answered[number], "answers", str(source.annotations))
        name = f"COCO_{subtype}_{_require_number(record, 'image_id', where):012d}.jpg"
        yield Question(
            join_below(source.images, [name], where),
            require_text(record, "question", where),
            _clean_answers([each.get("answer") for each in answers], f"question {number} of {where}"),
            require_text(answered[number], "answer_type", where),
        )


def _read_gqa(source: Source) -> Iterator[Question]:
    records, where = read_json(source.questions), str(source.questions)
    if not isinstance(records, dict):
        raise DatasetError(f'{where} is not in GQA\'s form: {{"ID": {{"imageId": ...}}, ...}} is expected.')
    for number, record in records.items():
        image = require_text(record, "imageId", f"question {number} of {where}")
        yield Question(
            join_below(source.images, [f"{image}.jpg"], where),
            require_text(record, "question", where),
            (require_text(record, "answer", where),),
            require_text(record.get("types"), "structural", f"question {number} of {where}"),
        )


def _read_pope(source: Source) -> Iterator[Question]:
    for where, record in read_json_lines(source.questions):
        yield Question(
            join_below(source.images, [require_text(record, "image", where)], where),
            require_text(record, "text", where),
            (_check_yes_or_no(require_text(record, "label", where), where),),
            source.questions.stem,
        )


def _read_textvqa(source: Source) -> Iterator[Question]:
    where = str(source.questions)
    for record in _list_records(read_json(source.questions), "data", where):
        image = require_text(record, "image_id", where)
        yield Question(
            join_below(source.images, [f"{image}.jpg"], where),
            require_text(record, "question", where),
            _clean_answers(record.get("answers"), f"image {image} of {where}"),
            "textvqa",
        )


def _read_mme(source: Source) -> Iterator[Question]:
    """Lines of "question<TAB>Yes", two per picture; some subtasks keep pictures and texts in two folders."""
    for text in sorted(source.questions.glob("*/*.txt")) + sorted(
        source.questions.glob("*/questions*/*.txt")
    ):
        subtask = source.questions / text.relative_to(source.questions).parts[0]
        places = [
            folder / f"{text.stem}{end}" for folder in (text.parent, subtask / "images") for end in _PICTURES
        ]
        image = next((place for place in places if place.is_file()), places[0])
        for number, line in enumerate(read_text_file(text).splitlines(), start=1):
            asked, tab, answer = line.strip().rpartition("\t")
            if tab:
                yield Question(
                    image, asked, (_check_yes_or_no(answer, f"line {number} of {text}"),), subtask.name
                )
            elif line.strip():
                raise DatasetError(f"line {number} of {text} is not of MME's form: question, tab, Yes or No.")


def _read_scenes(source: Source) -> Iterator[Question]:
    for where, record in read_json_lines(source.questions):
        image = join_below(source.images, [require_text(record, "image", where)], where)
        for asked in _list_records(record, "questions", where):
            text = require_text(asked, "question", where)
            kind = " ".join(text.split()[:2]).lower()
            yield Question(image, text, (require_text(asked, "answer", where),), kind)


_READERS: dict[str, Callable[[Source], Iterator[Question]]] = {
    "vqav2": _read_vqav2,
    "gqa": _read_gqa,
    "pope": _read_pope,
    "textvqa": _read_textvqa,
    "mme": _read_mme,
    "scenes": _read_scenes,
}
TASKS = tuple(_READERS)


def _list_records(data: Any, key: str, where: str) -> list[dict[str, Any]]:
    records = data.get(key) if isinstance(data, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DatasetError(f'{where} is of another form: {{"{key}": [{{...}}, ...]}} is expected.')
    return records


def _require_number(record: dict[str, Any], key: str, where: str) -> int:
    value = record.get(key)
    if not isinstance(value, int):
        raise DatasetError(f'{where} is of another form: "{key}" should be a number and is {value!r:.100}.')
    return value


def _clean_answers(answers: object, where: str) -> tuple[str, ...]:
    if not isinstance(answers, list) or not answers or not all(isinstance(each, str) for each in answers):
        raise DatasetError(f"{where} has no list of people's answers.")
    return tuple(answers)


def _check_yes_or_no(answer: str, where: str) -> str:
    if answer.strip().lower() not in ("yes", "no"):
        raise DatasetError(f"{where} should be answered yes or no, and is {answer!r:.100}.")
    return answer.strip().lower()
