"""Annotation files: what is read, what is refused, and the messages."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.datasets import CaptionedImage, name_split, parse_dataset, read_karpathy
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


def test_all_names_every_split_and_without_a_name_it_is_the_test_split(tmp_path: Path) -> None:
    splits = ["val", "test", "train"]
    path = write_annotations(tmp_path, *(make_record(f"{split}.jpg", split, "A.") for split in splits))
    assert [image.split for image in parse_dataset(path, tmp_path, "all")] == splits
    assert [image.split for image in parse_dataset(path, tmp_path, None)] == ["test"]


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


def write_text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_nocaps(folder: Path) -> Path:
    images = [
        {"id": 7, "file_name": "b.jpg", "domain": "out-domain", "coco_url": "https://example.org/b.jpg"},
        {"id": 3, "file_name": "a.jpg", "domain": "in-domain", "open_images_id": "a"},
    ]
    texts = [(3, "A dog."), (7, "A cat."), (3, "A hound.")]
    annotations = [{"image_id": image, "id": number, "caption": t} for number, (image, t) in enumerate(texts)]
    record = {"licenses": [], "info": {}, "images": images, "annotations": annotations}
    return write_text(folder / "nocaps_val_4500_captions.json", json.dumps(record))


def test_nocaps_captions_are_those_of_their_image_and_its_domains_are_splits(tmp_path: Path) -> None:
    path = write_nocaps(tmp_path)
    assert parse_dataset(path, tmp_path, None) == [
        CaptionedImage(tmp_path / "b.jpg", ("A cat.",), "out-domain"),
        CaptionedImage(tmp_path / "a.jpg", ("A dog.", "A hound."), "in-domain"),
    ]
    assert [image.path.name for image in parse_dataset(path, tmp_path, "in-domain")] == ["a.jpg"]
    with pytest.raises(DatasetError, match=r"no split test: it has in-domain \(1\), out-domain \(1\)"):
        parse_dataset(path, tmp_path, "test")


ROWS = [("a.jpg", "A dog.", "val"), ("b.jpg", 'A "cat", red', "test"), ("a.jpg", "A hound.", "val")]


def write_table(folder: Path, suffix: str, columns: tuple[str, ...] = ("image", "caption", "split")) -> Path:
    path = folder / f"captions{suffix}"
    records = [dict(zip(columns, row, strict=False)) for row in ROWS]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif suffix == ".jsonl":
        write_text(path, "".join(f"{json.dumps(record)}\n" for record in records))
    else:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table_gives_the_same_images_in_whichever_form_it_comes(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path, suffix)
    assert parse_dataset(path, tmp_path, "all") == [
        CaptionedImage(tmp_path / "a.jpg", ("A dog.", "A hound."), "val"),
        CaptionedImage(tmp_path / "b.jpg", ('A "cat", red',), "test"),
    ]
    assert [image.split for image in parse_dataset(path, tmp_path, None)] == ["test"]
    plain = parse_dataset(write_table(tmp_path, suffix, ("filepath", "title")), tmp_path, None)
    assert [image.split for image in plain] == ["", ""]
    assert name_split(plain) == "all"


def test_a_list_of_captions_in_a_cell_is_as_many_rows(tmp_path: Path) -> None:
    text = '{"image": "a.jpg", "captions": ["A\u2028dog.", " "]}\n\n{"image": "a.jpg", "caption": "A."}'
    path = write_text(tmp_path / "t.jsonl", text)
    assert parse_dataset(path, tmp_path, None)[0].captions == ("A\u2028dog.", "A.")


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_a_cell_that_is_a_json_list_of_texts_holds_as_many_captions(
    tmp_path: Path, suffix: str, delimiter: str
) -> None:
    cells = [json.dumps(["A dog.", 'A "hound", red.']), "[a dog] A.", "[1, 2]", "[" * 100_000]
    with (tmp_path / f"t{suffix}").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerows([("raw", "filename"), *((cell, f"{n}.jpg") for n, cell in enumerate(cells))])
    images = parse_dataset(tmp_path / f"t{suffix}", tmp_path, None)
    assert [image.captions for image in images] == [("A dog.", 'A "hound", red.'), *((c,) for c in cells[1:])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"picture": "a.jpg", "caption": "A."}',
            "line 1 of .* has no column image or .* but picture, caption",
        ),
        ('{"image": "a.jpg", "words": "A."}', "has no column caption or"),
        ('{"image": 3, "caption": "A."}', "no path of an image"),
        ('{"image": {"bytes": ""}, "caption": "A."}', "no path of an image"),
        ('{"image": "a.jpg", "caption": 3}', "no text in its column"),
        ('{"image": "../a.jpg", "caption": "A."}', "not a plain path"),
        ('{"image": "a.jpg", "caption": " "}', "no caption with words"),
        ("3", "line 1 of .* is not of the form"),
        ("", "holds no rows"),
    ],
)
def test_a_table_of_another_form_is_one_plain_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        parse_dataset(write_text(tmp_path / "t.jsonl", text), tmp_path, None)


def test_a_table_that_is_none_is_one_plain_error(tmp_path: Path) -> None:
    for suffix in (".parquet", ".csv"):
        with pytest.raises(DatasetError, match="no annotation file"):
            parse_dataset(tmp_path / f"none{suffix}", tmp_path, None)
    with pytest.raises(DatasetError, match="as a Parquet table"):
        parse_dataset(write_text(tmp_path / "t.parquet", "PAR1"), tmp_path, None)
    with pytest.raises(DatasetError, match="of no known form"):
        parse_dataset(write_text(tmp_path / "t.xlsx", ""), tmp_path, None)
