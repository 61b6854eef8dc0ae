"""Rendered scenes as compositions: each has a true caption, and false ones that differ by one change."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from benchmarks.embedding import embed_texts
from benchmarks.readers.composition import Composition, Picture
from benchmarks.recall import RecallReport, report_recall
from benchmarks.scenes import (
    Scene,
    describe_fully,
    draw_scene,
    find_uniquely_named,
    hard_negatives,
    make_scene,
    unique_caption,
)
from encoders.base import Encoder, FloatArray

_CUTOFFS = (1, 10)
_PICTURE_SIZE = 144


@dataclass(frozen=True)
class SceneRecall:
    """Recall of scenes by the captions that are true of exactly one scene of the gallery."""

    scenes: int
    unique_captions: int
    recall: RecallReport


def name_scenes(count: int, seed: int) -> dict[Picture, Scene]:
    """Scenes 0 to count - 1 of the series `seed`, keyed by the Picture that compositions refer to."""
    return {Picture(Path(f"{seed}-{index}")): make_scene(seed, index) for index in range(count)}


def make_scene_compositions(scenes: Mapping[Picture, Scene]) -> list[Composition]:
    """A composition for each hard negative; its kind is the change that made the caption false."""
    return [
        Composition((picture,), (unique_caption(scene), negative.caption), 1, negative.kind)
        for index, (picture, scene) in enumerate(scenes.items())
        for negative in hard_negatives(scene, Random(index))
    ]


def draw_picture(scene: Scene) -> Image.Image:
    """Draw the picture of a scene that every encoder is given."""
    return draw_scene(scene, _PICTURE_SIZE)


def measure_scene_recall(
    encoder: Encoder, scenes: Mapping[Picture, Scene], vectors: FloatArray
) -> SceneRecall:
    """Measure recall of scenes by their captions; vectors (scenes, dim) are in the order of `scenes`."""
    drawn = list(scenes.values())
    unique = np.array(find_uniquely_named(drawn, [describe_fully(scene) for scene in drawn]), np.int64)
    texts = embed_texts(encoder, [unique_caption(drawn[index]) for index in unique])
    recall = report_recall(texts, vectors, unique, np.arange(len(drawn)), _CUTOFFS)
    return SceneRecall(len(drawn), len(unique), recall)
