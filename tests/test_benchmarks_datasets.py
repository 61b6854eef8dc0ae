"""Annotation files: what is read, and what is refused in which words."""

import json
from pathlib import Path

import pytest

from benchmarks.datasets import CaptionedImage, read_caption_groups, read_karpathy
from encoders.base import DatasetError


def make_record(name: str, split: str, *captions: str, filepath: str | None = None) -> dict[str, object]:
    record: dict[str, object] = {
        "filename": name,
        "split": split,
        "sentences": [{"raw": caption} for caption in captions],
    }
    return record if filepath is None else record | {"filepath": filepath}


def write_annotations(folder: Path, *records: dict[str, object]) -> Path:
    path = folder / "dataset.json"
    path.write_text(json.dumps({"dataset": "made", "images": records}), encoding="utf-8")
    return path


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_the_images_of_the_named_splits_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    records = [make_record("b.jpg", "test", " A dog . ", "A cat."), make_record("a.jpg", "train", "No.")]
    path = write_annotations(tmp_path, *records, make_record("c.jpg", "test", "A bird."))
    touch(tmp_path / "b.jpg", tmp_path / "c.jpg")
    assert read_karpathy(path, tmp_path, ["test"]) == [
        CaptionedImage(tmp_path / "b.jpg", ("A dog .", "A cat."), "test"),
        CaptionedImage(tmp_path / "c.jpg", ("A bird.",), "test"),
    ]


def test_coco_keeps_its_folders_and_restval_is_read_only_when_named(tmp_path: Path) -> None:
    path = write_annotations(
        tmp_path,
        make_record("x.jpg", "train", "A dog.", filepath="train2014"),
        make_record("y.jpg", "restval", "A cat.", filepath="val2014"),
    )
    touch(tmp_path / "train2014" / "x.jpg", tmp_path / "val2014" / "y.jpg")
    both = read_karpathy(path, tmp_path, {"train", "restval"})
    assert [image.path for image in both] == [
        tmp_path / "train2014" / "x.jpg",
        tmp_path / "val2014" / "y.jpg",
    ]
    assert [image.split for image in read_karpathy(path, tmp_path, {"train"})] == ["train"]


def test_a_split_that_is_not_there_is_refused_and_those_that_are_there_are_named(tmp_path: Path) -> None:
    path = write_annotations(tmp_path, make_record("a.jpg", "val", "A."), make_record("b.jpg", "val", "B."))
    with pytest.raises(DatasetError, match=r"no split test: it has val \(2\)"):
        read_karpathy(path, tmp_path, ["test"])


def test_missing_photos_are_counted_and_the_first_three_named(tmp_path: Path) -> None:
    path = write_annotations(tmp_path, *(make_record(f"{n}.jpg", "test", "A.") for n in range(5)))
    touch(tmp_path / "0.jpg")
    with pytest.raises(DatasetError, match=r"4 of 5 photos .*\(1.jpg, 2.jpg, 3.jpg, \.\.\.\)"):
        read_karpathy(path, tmp_path, ["test"])
    assert [image.path.name for image in read_karpathy(path, tmp_path, ["test"], allow_missing=True)] == [
        "0.jpg"
    ]


def test_a_folder_without_any_of_the_photos_is_refused_even_where_missing_ones_are_allowed(
    tmp_path: Path,
) -> None:
    path = write_annotations(tmp_path, make_record("a.jpg", "test", "A."))
    with pytest.raises(DatasetError, match="is this the photos' folder"):
        read_karpathy(path, tmp_path, ["test"], allow_missing=True)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.jpg", "a/../../b.jpg", "C:\\x.jpg", "a\0.jpg"])
@pytest.mark.parametrize("field", ["filename", "filepath"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str, field: str) -> None:
    record = make_record("a.jpg", "test", "A.", filepath="val2014") | {field: name}
    with pytest.raises(DatasetError, match="not a plain path"):
        read_karpathy(write_annotations(tmp_path, record), tmp_path, ["test"], allow_missing=True)


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        '{"images": []}',
        '{"images": [1]}',
        '{"images": [{"filename": "a.jpg"}]}',
        '{"images": [{"filename": 3, "split": "test", "sentences": [{"raw": "A."}]}]}',
        '{"images": [{"filename": "a.jpg", "split": "test"}]}',
        '{"images": [{"filename": "a.jpg", "split": "test", "sentences": [{"tokens": []}]}]}',
        '{"images": [{"filename": "a.jpg", "split": "test", "sentences": [{"raw": "  "}]}]}',
        "[" * 100_000,
    ],
)
def test_json_of_another_form_is_one_plain_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        read_karpathy(path, tmp_path, ["test"])


def test_a_file_that_is_not_there_is_one_plain_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no annotation file"):
        read_karpathy(tmp_path / "none.json", tmp_path, ["test"])


def test_caption_groups_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image": "1.jpg", "captions": ["A dog.", " "]}\n{"captions": ["B.", "C."]}\n')
    assert read_caption_groups(path) == [("A dog.",), ("B.", "C.")]


@pytest.mark.parametrize(
    "line", ["{", "3", '{"captions": "A dog."}', '{"captions": [1]}', '{"captions": []}']
)
def test_a_line_of_another_form_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text(f'{{"captions": ["A."]}}\n{line}\n')
    with pytest.raises(DatasetError, match="line 2"):
        read_caption_groups(path)
