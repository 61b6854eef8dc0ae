"""Scenes that are drawn for one step only, with their texts."""

from random import Random

from benchmarks.scenes import (
    Scene,
    hard_negatives,
    make_scene,
    phrase_scene,
    questions,
    retell_scene,
    unique_caption,
)
from training.data_settings import DrawnSettings
from training.families import make_family
from training.sources.base import Sample, Turn

FAMILY_SIZE = 4
_FULL_CAPTIONS = 0.6  # the fraction of scenes whose target is the caption that says everything


class DrawnSource:
    """Has no rows to deal: scene `index` of the series `seed` is made on demand."""

    def __init__(self, settings: DrawnSettings) -> None:
        self.settings = settings

    def draw_samples(
        self, seed: int, first: int, count: int, random: Random
    ) -> tuple[list[Scene], list[Sample]]:
        """Make `count` scenes, starting at index `first`, and draw their texts."""
        most_things = self.settings.most_things
        if self.settings.kind == "scenes":
            scenes = [make_scene(seed, index, most_things) for index in range(first, first + count)]
            return scenes, [_ask_about_scene(scene, random, self.settings.questions) for scene in scenes]
        starts = range(first, first + count, FAMILY_SIZE)
        scenes = [scene for start in starts for scene in make_family(seed, start, FAMILY_SIZE, most_things)]
        return scenes, [_ask_about_relative(scene, random) for scene in scenes]


def _ask_about_scene(scene: Scene, random: Random, asked: int) -> Sample:
    phrasings = [phrasing.caption for phrasing in phrase_scene(scene, random)]
    target = phrasings[0] if random.random() < _FULL_CAPTIONS else random.choice(phrasings)
    negatives = [random.choice(hard_negatives(scene, random)).caption]
    caption = Turn("", random.choice(phrasings))
    turns = [Turn(*pair) for pair in questions(scene)]
    if asked:
        return Sample(phrasings, target, [caption, *random.sample(turns, min(asked, len(turns)))], negatives)
    return Sample(phrasings, target, [caption if random.random() < 0.5 else random.choice(turns)], negatives)


def _ask_about_relative(scene: Scene, random: Random) -> Sample:
    """Texts of a family member, which say everything: anything less may also be true of other members."""
    full = unique_caption(scene)
    target = full if random.random() < _FULL_CAPTIONS else retell_scene(scene, random)
    return Sample([full], target, [Turn("", full)])
