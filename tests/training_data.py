"""A small made-up data set and its settings, for the tests of training data."""

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.prompts import Prompts
from tests.tiny_models import LVLM, SUMMARIES, WORDS
from training.data import StepDataset
from training.data_settings import (
    AugmentationSettings,
    BatchSettings,
    CaptionGroupSettings,
    DrawnSettings,
    KarpathySettings,
    ShardSettings,
    SourceSettings,
)
from training.distributed import ALONE, Ranks
from training.lvlm import make_processor, train_tokenizer
from training.sources.base import Source
from training.sources.open import open_sources

PHOTOS = 7
SHARDS = ShardSettings("webdataset", "*.tar", True, True)
GROUPS = 5
AUGMENTATION = AugmentationSettings(0.4, 0.4, 0.5)
MIXED = {"photos": 4, "scenes": 2, "families": 8, "groups": 1}
BATCHES = (
    BatchSettings(2, {"groups": 3}),
    BatchSettings(20, MIXED),
    BatchSettings(5, {"photos": 4, "scenes": 2, "families": 4}, tower_only=True),
    BatchSettings(3, {"photos": 5}),
)
PROMPTS = Prompts(
    "{content} {instruction}", "Summarize the image.", "Summarize the text.", "Describe the image."
)


def make_plain_builder() -> InputBuilder:
    """An input builder with fixed prompts, whatever the defaults are."""
    return InputBuilder(make_processor(train_tokenizer(WORDS, LVLM.vocabulary), LVLM), PROMPTS, SUMMARIES)


def write_lines(path: Path, records: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_photos(folder: Path) -> None:
    """Noise pictures, their captions ("dog 3 one" and the like) in `dataset.json`, and `groups.jsonl`."""
    random = np.random.default_rng(0)
    records = []
    for number, side in zip(range(PHOTOS), ["left", "right", "top"] * 3, strict=False):
        pixels = random.integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        captions = [f"dog {number} one", f"dog {number} two on the {side}", f"a cat {number}"]
        sentences = [{"raw": caption} for caption in captions]
        records.append({"filename": f"{number}.png", "split": "train", "sentences": sentences})
    (folder / "dataset.json").write_text(json.dumps({"images": records}))
    groups = [{"captions": [f"cat {number} {word}" for word in "abc"]} for number in range(GROUPS)]
    write_lines(folder / "groups.jsonl", groups)


def make_settings(in_memory: bool = True) -> dict[str, SourceSettings]:
    return {
        "photos": KarpathySettings("karpathy", "dataset.json", ".", ("train",), True, True, in_memory),
        "scenes": DrawnSettings("scenes", True, True),
        "families": DrawnSettings("families", True, True),
        "groups": CaptionGroupSettings("caption_groups", "groups.jsonl", True, True),
    }


def make_dataset(
    folder: Path,
    settings: dict[str, SourceSettings] | None = None,
    batches: Sequence[BatchSettings] = BATCHES,
    augmentation: AugmentationSettings | None = AUGMENTATION,
    seed: int = 5,
    ranks: Ranks = ALONE,
) -> StepDataset:
    sources = open_sources(settings or make_settings(), folder)
    return StepDataset(sources, make_plain_builder(), batches, augmentation, seed, ranks)


def share_out(count: int) -> list[Ranks]:
    """This many ranks, in one process."""
    return [replace(ALONE, rank=rank, count=count) for rank in range(count)]


def read_texts(dataset: StepDataset, ids: Any) -> list[str]:
    return dataset.builder.tokenizer.batch_decode(ids, skip_special_tokens=True)


def open_one(settings: SourceSettings, folder: Path) -> Source:
    source: Any = open_sources({"one": settings}, folder)["one"]
    return source


def encode_picture(colour: str, kind: str = "PNG", size: tuple[int, int] = (9, 7)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, kind)
    return stream.getvalue()


def write_shard(path: Path, *members: tuple[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
