"""Rendered scenes: pictures drawn by the project, with captions, negatives and questions of known truth.

    python -m benchmarks.scenes --out DIR --count 300 --seed 1 [--size 144] [--format png|jpg]

writes the pictures, `dataset_scenes.json` (Karpathy's format, split "test") and `scenes.jsonl` (captions,
hard negatives, questions). The parts are `scene_world` (what a scene is and what is true of it),
`scene_drawing`, `scene_captions` and `scene_questions`; everything a caller needs can be imported from here.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from benchmarks.command import at_least, run_command
from benchmarks.scene_captions import (
    HardNegative,
    Phrasing,
    describe_scene,
    falsify_scene,
    hard_negatives,
    phrase_scene,
    render_description,
    retell_scene,
    unique_caption,
)
from benchmarks.scene_drawing import draw_scene
from benchmarks.scene_questions import questions
from benchmarks.scene_world import (
    SHAPES,
    TEXTURES,
    Background,
    Description,
    Mention,
    Relation,
    Scene,
    Thing,
    describe_fully,
    find_uniquely_named,
    is_true,
    make_scene,
    rearrange_scene,
)

__all__ = [
    "SHAPES",
    "TEXTURES",
    "Background",
    "Description",
    "HardNegative",
    "Mention",
    "Phrasing",
    "Relation",
    "Scene",
    "Thing",
    "describe_fully",
    "describe_scene",
    "draw_scene",
    "falsify_scene",
    "find_uniquely_named",
    "hard_negatives",
    "is_true",
    "make_scene",
    "name_scene",
    "phrase_scene",
    "questions",
    "rearrange_scene",
    "render_description",
    "retell_scene",
    "unique_caption",
    "write_scenes",
]

_JPEG_QUALITY = 95


def name_scene(scene: Scene, index: int, suffix: str) -> str:
    """A human-readable file name: "00007-red-circle-left-of-blue-square.png"."""
    things = [f"{thing.colour} {thing.shape}" for thing in scene.things]
    words = things[0]
    if scene.relations:
        first = scene.relations[0]
        words = " ".join([things[first.subject], first.kind, things[first.other], *things[2:]])
    return f"{index:05d}-{re.sub('[^a-z]+', '-', words)}.{suffix}"


def write_scenes(out: Path, count: int, seed: int, size: int = 144, suffix: str = "png") -> None:
    """Write `count` scenes of the series `seed` as pictures, with their two annotation files."""
    out.mkdir(parents=True, exist_ok=True)
    records = []
    for index in tqdm(range(count), unit="scene", disable=None):
        scene = make_scene(seed, index)
        name = name_scene(scene, index, suffix)
        draw_scene(scene, size).save(out / name, quality=_JPEG_QUALITY)
        records.append(_annotate_scene(scene, name, Random(f"{seed} {index}")))
    lines = [json.dumps(record) for record in records]
    (out / "scenes.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    karpathy = {"dataset": "scenes", "images": [_to_karpathy(record, i) for i, record in enumerate(records)]}
    (out / "dataset_scenes.json").write_text(json.dumps(karpathy), encoding="utf-8")


def _annotate_scene(scene: Scene, name: str, random: Random) -> dict[str, Any]:
    return {
        "image": name,
        "captions": describe_scene(scene, random),
        "negatives": [negative._asdict() for negative in hard_negatives(scene, random)],
        "questions": [{"question": asked, "answer": answer} for asked, answer in questions(scene)],
    }


def _to_karpathy(record: dict[str, Any], index: int) -> dict[str, Any]:
    captions = record["captions"]
    numbers = range(index * len(captions), (index + 1) * len(captions))
    return {
        "imgid": index,
        "filename": record["image"],
        "split": "test",
        "sentids": list(numbers),
        "sentences": [
            {"raw": caption, "tokens": re.findall("[a-z]+", caption), "imgid": index, "sentid": number}
            for number, caption in zip(numbers, captions, strict=True)
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a folder of rendered scenes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scenes", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=at_least(1), default=300)
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--size", type=at_least(1), default=144)
    parser.add_argument("--format", choices=("png", "jpg"), default="png")
    options = parser.parse_args(arguments)

    def write() -> None:
        write_scenes(options.out, options.count, options.seed, options.size, options.format)
        print(f"{options.count} scenes of series {options.seed} are in {options.out}")

    return run_command(write)


if __name__ == "__main__":
    sys.exit(main())
