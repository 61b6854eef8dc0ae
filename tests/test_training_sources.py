"""Each kind of source: what it reads, what it refuses, and the messages."""

import json
from collections import Counter
from dataclasses import make_dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders.base import DatasetError
from tests.training_data import (
    SHARDS,
    encode_picture,
    make_dataset,
    make_plain_builder,
    open_one,
    read_texts,
    share_out,
    write_lines,
    write_shard,
)
from training.data import StepDataset
from training.data_settings import (
    BatchSettings,
    CaptionGroupSettings,
    CaptionTableSettings,
    ConversationSettings,
    KarpathySettings,
    SourceSettings,
)
from training.losses import HARD_NEGATIVE
from training.sources.base import Turn
from training.sources.open import open_sources, read_all_captions
from training.typed_toml import read_toml

CONVERSATIONS = ConversationSettings("conversations", "talk.json", ".", False, True)
TABLE = CaptionTableSettings("captions", "table.parquet", ".", "file", ("short", "long"), True, True)


def talk(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]


def write_talks(folder: Path, *records: Any) -> None:
    (folder / "talk.json").write_text(json.dumps(records, indent=1), encoding="utf-8")


@pytest.mark.parametrize(
    "settings",
    [
        KarpathySettings("karpathy", "none.json", ".", ("train",), True, True),
        CONVERSATIONS,
        TABLE,
        CaptionTableSettings("captions", "none.jsonl", ".", "file", ("short",), True, True),
        SHARDS,
        CaptionGroupSettings("caption_groups", "none.jsonl", True, True),
    ],
)
def test_a_file_that_is_not_there_is_one_plain_error(tmp_path: Path, settings: SourceSettings) -> None:
    with pytest.raises(DatasetError, match=r"There (is|are) no "):
        open_one(settings, tmp_path)


def test_every_turn_of_a_conversation_is_a_question_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_picture("red"))
    write_talks(
        tmp_path,
        {"id": 1, "image": "a.png", "conversations": talk("<image>\nWhat?", "A dog.", "Why?", " It is. ")},
        {"id": "t", "image": None, "conversations": talk("Write a poem.", "No.")},
        {"id": 2, "image": "a.png", "conversations": talk("<image>", "A dog.")},
        {"id": 3, "conversations": [{"from": "gpt", "value": "Hello."}, *talk("Who?", "Me.")]},
    )
    source = open_one(CONVERSATIONS, tmp_path)
    samples = [source.draw_sample(row, Random(0)) for row in range(len(source))]
    assert samples[0].turns == [Turn("What?", "A dog."), Turn("Why?", "It is.")]
    assert [sample.text for sample in samples] == ["", "Write a poem.", "", "Who?"]
    assert samples[2].turns == [Turn("", "A dog.")]
    assert source.load_picture(0, 0).getpixel((0, 0)) == (255, 0, 0)
    assert "id 't'" in source.describe_row(1)


def test_all_turns_of_a_row_are_answers_about_one_source(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_picture("red"))
    turns = talk("<image>\nwhat?", "dog", "cats?", "two", "snow?", "grass")
    write_talks(
        tmp_path, {"conversations": talk("a text", "cat")}, {"image": "a.png", "conversations": turns}
    )
    dataset = make_dataset(
        tmp_path, {"talk": CONVERSATIONS}, [BatchSettings(1, {"talk": 2})], augmentation=None
    )
    step = dataset[0]
    assert ["pixel_values" in part for part in step.sources] == [True, False]  # pictures come first
    assert read_texts(dataset, step.sources[1]["input_ids"])[0].strip().startswith("a text")
    (answers,) = step.answers
    said = read_texts(dataset, answers.inputs["input_ids"])
    assert sorted(zip(answers.sources.tolist(), (text.split()[-1] for text in said), strict=True)) == [
        (0, "dog"),
        (0, "grass"),
        (0, "two"),
        (1, "cat"),
    ]
    assert not step.targets and not step.paired.any() and not step.tower_only


def test_no_rank_goes_without_where_pictures_and_texts_are_mixed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_picture("red"))
    write_talks(
        tmp_path,
        {"conversations": talk("a text", "cat")},
        {"image": "a.png", "conversations": talk("<image>\nwhat?", "dog")},
    )
    batches = [BatchSettings(1, {"talk": 2})]
    steps = [
        make_dataset(tmp_path, {"talk": CONVERSATIONS}, batches, augmentation=None, ranks=ranks)[0]
        for ranks in share_out(2)
    ]
    assert [len(step.source_ids) for step in steps] == [1, 1]
    assert ["pixel_values" in part for step in steps for part in step.sources] == [True, False]


def test_negative_columns_are_told_from_the_caption(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_picture("red"))
    rows = {"file": ["a.png"], "short": ["a dog"], "wrong": [["a cat", " "]], "other": [None]}
    pq.write_table(pa.table(rows), tmp_path / "table.parquet")
    settings = replace(TABLE, caption_columns=("short",), negative_columns=("wrong", "other"))
    assert open_one(settings, tmp_path).draw_sample(0, Random(0)).negatives == ["a cat"]
    step = make_dataset(tmp_path, {"table": settings}, [BatchSettings(1, {"table": 1})], augmentation=None)[0]
    assert step.target_ids.tolist().count(HARD_NEGATIVE) == 1
    with pytest.raises(DatasetError, match="no column worse"):
        open_one(replace(settings, negative_columns=("worse",)), tmp_path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "no list"),
        ({"conversations": []}, "do not speak in turn"),
        ({"conversations": [3]}, "no list"),
        ({"conversations": talk("What?")}, "do not speak in turn"),
        ({"conversations": talk("What?", "A.", "B?")}, "do not speak in turn"),
        ({"conversations": [{"from": "system", "value": "x"}, *talk("What?", "A.")]}, "do not speak in turn"),
        ({"conversations": talk("What?", " ")}, "answer in its conversation is empty"),
        (
            {"conversations": [{"from": "human", "value": 3}, *talk("", "A.")[1:]]},
            "should be text and is int",
        ),
        ({"conversations": talk("<image>", "A.")}, "neither an image nor a first question"),
        ({"image": "a.png", "conversations": talk("<image> or <image>?", "A.")}, "several images"),
    ],
)
def test_a_conversation_of_another_form_says_what_is_wrong(
    tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    write_talks(tmp_path, record)
    with pytest.raises(DatasetError, match=message):
        open_one(CONVERSATIONS, tmp_path).draw_sample(0, Random(0))


@pytest.mark.parametrize("image", ["../a.png", "/etc/passwd", "C:\\a.png", "b/../../a.png"])
def test_a_picture_outside_its_folder_is_refused(tmp_path: Path, image: str) -> None:
    (tmp_path / "a.png").write_bytes(encode_picture("red"))
    (tmp_path / "below" / "b").mkdir(parents=True)
    write_talks(tmp_path / "below", {"image": image, "conversations": talk("What?", "A.")})
    pq.write_table(
        pa.table({"file": [image], "short": ["A."], "long": [None]}), tmp_path / "below" / "table.parquet"
    )
    for settings in (CONVERSATIONS, TABLE):
        source = open_one(settings, tmp_path / "below")
        with pytest.raises(DatasetError, match="not a plain path below"):
            source.load_picture(0, 0)


@pytest.mark.parametrize("image", [3, ["a.png", "b.png"], None])
def test_an_image_that_is_not_one_path_is_refused(tmp_path: Path, image: Any) -> None:
    write_talks(tmp_path, {"image": image, "conversations": talk("What?", "A.")})
    with pytest.raises(DatasetError, match='"image" should be one path'):
        open_one(CONVERSATIONS, tmp_path).load_picture(0, 0)


@pytest.mark.parametrize("name", ["table.parquet", "table.jsonl"])
def test_a_caption_table_gives_the_texts_of_all_its_caption_columns(tmp_path: Path, name: str) -> None:
    rows: list[dict[str, Any]] = [
        {"file": "a.png", "short": "dog", "long": ["a red dog", " "], "more": 1},
        {"file": "none.png", "short": " ", "long": [], "more": 2},
        {"file": None, "short": "cat", "long": None, "more": 3},
    ]
    (tmp_path / "a.png").write_bytes(encode_picture("blue"))
    if name.endswith("jsonl"):
        write_lines(tmp_path / name, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    source = open_one(
        CaptionTableSettings("captions", name, ".", "file", ("short", "long"), True, True), tmp_path
    )
    assert len(source) == 3
    assert source.read_captions(0) == ["dog", "a red dog"]
    assert source.load_picture(0, 0).getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(DatasetError, match="no caption"):
        source.read_captions(1)
    with pytest.raises(DatasetError, match="no such picture"):
        source.load_picture(1, 0)
    with pytest.raises(DatasetError, match='"file" should be one path'):
        source.load_picture(2, 0)


def test_a_table_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"file": ["a.png"]}), path)
    with pytest.raises(DatasetError, match="no column long, short"):
        open_one(TABLE, tmp_path)
    pq.write_table(pa.table({"file": ["a.png"], "short": [3], "long": [None]}), path)
    with pytest.raises(DatasetError, match='"short" should be text and is 3'):
        open_one(TABLE, tmp_path).read_captions(0)
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in ("file", "short", "long")}), path)
    with pytest.raises(DatasetError, match="no rows"):
        open_one(TABLE, tmp_path)
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(DatasetError, match="cannot be read as a Parquet table"):
        open_one(TABLE, tmp_path)
    with pytest.raises(DatasetError, match=r"a \.parquet or a \.jsonl"):
        open_one(CaptionTableSettings("captions", "t.csv", ".", "a", ("b",), True, True), tmp_path)


def test_records_of_karpathys_form_that_are_broken_spoil_no_other(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"filename": "a.png", "split": "train", "sentences": [{"raw": "A dog."}]},
        {"filename": "b.png", "split": "train", "sentences": [{"raw": " "}]},
        {"filename": "../c.png", "split": "train", "sentences": [{"raw": "A cat."}]},
    ]
    (tmp_path / "k.json").write_text(json.dumps({"images": records}))
    source = open_one(KarpathySettings("karpathy", "k.json", ".", ("train",), True, True), tmp_path)
    assert source.read_captions(0) == ("A dog.",)
    for row, message in ((1, "no caption"), (2, "not a plain path")):
        with pytest.raises(DatasetError, match=message):
            source.draw_sample(row, Random(0))


def test_all_captions_are_those_of_texts_and_then_those_of_pictures(tmp_path: Path) -> None:
    write_lines(tmp_path / "g.jsonl", [{"captions": ["a", "b"]}, {"captions": 3}])
    write_shard(tmp_path / "s.tar", ("0.png", b""), ("0.txt", b"c"))
    settings = {"shards": SHARDS, "groups": CaptionGroupSettings("caption_groups", "g.jsonl", True, True)}
    assert list(read_all_captions(open_sources(settings, tmp_path))) == ["a", "b", "c"]


def test_a_source_of_every_kind_trains_in_one_step(tmp_path: Path) -> None:
    write_talks(tmp_path, {"conversations": talk("what is it?", "dog")})
    write_shard(tmp_path / "s.tar", ("0.png", encode_picture("red")), ("0.txt", b"a red wall"))
    rows = [{"file": "a.png", "short": "snow", "long": "the long snow"}]
    (tmp_path / "a.png").write_bytes(encode_picture("white"))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    settings: dict[str, SourceSettings] = {"talk": CONVERSATIONS, "shards": SHARDS, "table": TABLE}
    sources = open_sources(settings, tmp_path)
    batches = [BatchSettings(1, {"talk": 1, "shards": 1, "table": 1})]
    step = StepDataset(sources, make_plain_builder(), batches, None, 1)[0]
    assert step.source_ids.tolist() == [10**9, 2 * 10**9, 0]
    assert step.paired.tolist() == [True, True, False]
    assert len(step.sources[0]["pixel_values"]) == 2


def test_settings_of_each_kind_are_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(
        '[sources.talk]\nkind = "conversations"\nannotations = "talk.json"\nimages = "."\n'
        "contrastive = false\nanswer = true\n"
        '[sources.shards]\nkind = "webdataset"\nshards = "*.tar"\ncontrastive = true\nanswer = true\n'
    )
    kind = make_dataclass("Settings", [("sources", dict[str, SourceSettings])])
    assert read_toml(path, kind).sources == {"talk": CONVERSATIONS, "shards": SHARDS}


def test_rows_that_show_one_picture_are_positives_of_each_other(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encode_picture("white"))
    rows = [{"file": f"{name}.png", "short": text} for name in "ab" for text in ("snow", "fog")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    write_talks(tmp_path, {"image": "b.png", "conversations": talk("what is it?", "fog")})
    table = CaptionTableSettings("captions", "table.parquet", ".", "file", ("short",), True, True)
    sources = open_sources({"table": table, "talk": CONVERSATIONS}, tmp_path)
    batches = [BatchSettings(1, {"table": 4, "talk": 1})]
    for ranks in share_out(2):
        step = StepDataset(sources, make_plain_builder(), batches, None, 1, ranks)[0]
        assert set(step.source_ids.tolist()) <= {0, 1} | {2, 3}
        assert set(step.target_ids.tolist()) <= set(step.source_ids.tolist())
    step = StepDataset(sources, make_plain_builder(), batches, None, 1)[0]
    assert sorted(Counter(step.source_ids.tolist()).values()) == [2, 3]


def test_a_cell_that_is_no_text_is_passed_over(tmp_path: Path) -> None:
    cells = pa.array([b"snow", b"\xff\xfe"])
    words = pa.StringArray.from_buffers(2, cells.buffers()[1], cells.buffers()[2])
    pq.write_table(pa.table({"file": words, "short": words, "long": words}), tmp_path / "table.parquet")
    assert open_one(TABLE, tmp_path).read_captions(0) == ["snow", "snow"]
    with pytest.raises(DatasetError, match="no UTF-8"):
        open_one(TABLE, tmp_path).draw_sample(1, Random(0))
