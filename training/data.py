"""What one training step reads: photos with captions, rendered scenes and caption groups, mixed by count.

Every step is a function of (seed, step) alone, so that a run which resumes sees what it would have seen.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import BatchEncoding

from benchmarks.datasets import CaptionedImage
from benchmarks.scenes import (
    Scene,
    draw_scene,
    hard_negatives,
    make_scene,
    phrase_scene,
    questions,
    retell_scene,
    unique_caption,
)
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import Answers
from training.augment import crop_randomly, erase_patches, jitter_colours
from training.families import make_family
from training.losses import HARD_NEGATIVE
from training.settings import AugmentationSettings, BatchSettings

_SIDED = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_SCENE_COLOUR_JITTER = 0.08  # colours are named, so they may not change much
_SCENE_IDS, _GROUP_IDS = 10**9, 2 * 10**9
_PART_ROWS = 64
Row = TypeVar("Row")
_FULL_CAPTIONS = 0.6  # the share of scenes matched by the caption that says everything
_FAMILY_SIZE = 4
_SCENES_A_STEP = 100_000  # more than any step has


class Step(NamedTuple):
    """The parts of one global batch; equal ids are positives (see `training.losses`).

    words: bool (images, vocabulary), those in the captions of each image.
    """

    sources: list[BatchEncoding]
    targets: list[BatchEncoding]
    answers: list[Answers]
    source_ids: Tensor
    target_ids: Tensor
    words: Tensor

    def to(self, device: torch.device) -> "Step":
        """The same step on another device."""
        return Step(
            [inputs.to(device) for inputs in self.sources],
            [inputs.to(device) for inputs in self.targets],
            [Answers(a.sources.to(device), a.inputs.to(device), a.labels.to(device)) for a in self.answers],
            self.source_ids.to(device),
            self.target_ids.to(device),
            self.words.to(device),
        )


@dataclass(frozen=True)
class PhotoSet:
    """Photos held in memory: uint8 (n, side, side, 3), and the captions of each."""

    pixels: NDArray[np.uint8]
    captions: list[tuple[str, ...]]


def load_photos(images: Sequence[CaptionedImage], side: int) -> PhotoSet:
    """Decode all photos once, squared to `side` pixels."""
    pixels = np.empty((len(images), side, side, 3), np.uint8)
    for row, image in enumerate(tqdm(images, desc="photos", unit="photo", disable=None)):
        with Image.open(image.path) as photo:
            pixels[row] = np.asarray(photo.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
    return PhotoSet(pixels, [image.captions for image in images])


class _Sample(NamedTuple):
    """Texts around one source: what matches it, what does not, what pass 2 is asked and must say.

    captions: everything that is said of it.
    """

    target: str
    negatives: list[str]
    question: str
    answer: str
    captions: Sequence[str]


class StepDataset(Dataset[Step]):
    """Step number to step. Photos and caption groups come in epochs; scenes are new at every step."""

    def __init__(
        self,
        photos: PhotoSet,
        caption_groups: Sequence[tuple[str, ...]],
        builder: InputBuilder,
        batches: Sequence[BatchSettings],
        augmentation: AugmentationSettings,
        seed: int,
    ) -> None:
        self.photos, self.builder, self.seed = photos, builder, seed
        self.caption_groups = [group for group in caption_groups if len(group) > 1]
        self.batches, self.augmentation = batches, augmentation
        size = builder.processor.image_processor.size
        self.image_size: int = size["height"]
        self.mean = torch.tensor(builder.processor.image_processor.image_mean).view(1, 3, 1, 1)
        self.deviation = torch.tensor(builder.processor.image_processor.image_std).view(1, 3, 1, 1)

    def __len__(self) -> int:
        return sum(batch.steps for batch in self.batches)

    def __getitem__(self, step: int) -> Step:
        batch, before = self._locate(step)
        random = Random(f"{self.seed} {step}")
        generator = torch.Generator().manual_seed(random.getrandbits(60))
        photo_rows = self._deal(len(self.photos.captions), before.photos, batch.photos, "photos")
        group_rows = self._deal(len(self.caption_groups), before.caption_pairs, batch.caption_pairs, "groups")
        photos = [self._ask_about_photo(self.photos.captions[row], random) for row in photo_rows]
        scenes, drawn = self._make_scenes(step, batch, random)
        pairs = [random.sample(self.caption_groups[row], 2) for row in group_rows]
        retold = [_Sample(pair[1], [], self.builder.prompts.caption, pair[1], pair) for pair in pairs]
        sources = []
        if photos or scenes:
            seen = torch.cat(
                [self._view_photos(photo_rows, photos, generator), self._view_scenes(drawn, generator)]
            )
            sources.append(self.builder.pixels((seen - self.mean) / self.deviation))
        if pairs:
            sources.append(self.builder.texts([first for first, _ in pairs]))
        # Photos count from 0, scenes and caption groups above them: no two kinds share an id.
        ids = [
            *photo_rows,
            *(_SCENE_IDS + row for row in range(len(scenes))),
            *(_GROUP_IDS + row for row in group_rows),
        ]
        words = self._mark_words([*photos, *scenes])
        if batch.tower_only:
            return Step(sources, [], [], torch.tensor(ids), torch.tensor([], dtype=torch.long), words)
        return self._assemble(sources, [photos, scenes, retold], ids, words)

    def _mark_words(self, samples: list[_Sample]) -> Tensor:
        return mark_words(self.builder, [" ".join(sample.captions) for sample in samples])

    def _assemble(
        self,
        sources: list[BatchEncoding],
        samples: list[list[_Sample]],
        source_ids: list[int],
        words: Tensor,
    ) -> Step:
        """Pack texts of like length together: ids say what belongs together, so their order is free."""
        rows = [sample for part in samples for sample in part]
        targets = [(row.target, known) for row, known in zip(rows, source_ids, strict=True)]
        targets += [(negative, HARD_NEGATIVE) for row in rows for negative in row.negatives]
        target_parts = _pack_by_length(targets, lambda target: len(target[0]))
        answer_parts = _pack_by_length(
            list(enumerate(rows)), lambda pair: len(pair[1].question + pair[1].answer)
        )
        return Step(
            sources,
            [self.builder.texts([text for text, _ in part]) for part in target_parts],
            [self._write_answers(part) for part in answer_parts],
            torch.tensor(source_ids),
            torch.tensor([known for part in target_parts for _, known in part]),
            words,
        )

    def _write_answers(self, rows: Sequence[tuple[int, _Sample]]) -> Answers:
        inputs, labels = self.builder.answers(
            [row.question for _, row in rows], [row.answer for _, row in rows]
        )
        return Answers(torch.tensor([source for source, _ in rows]), inputs, labels)

    def _locate(self, step: int) -> tuple[BatchSettings, BatchSettings]:
        """The batch settings at a step, and how much of each kind was dealt before it."""
        photos = pairs = 0
        for batch in self.batches:
            if step < batch.steps:
                return batch, BatchSettings(
                    step, False, photos + step * batch.photos, 0, 0, pairs + step * batch.caption_pairs
                )
            step -= batch.steps
            photos += batch.steps * batch.photos
            pairs += batch.steps * batch.caption_pairs
        raise IndexError(f"step is {step} past the last")

    def _deal(self, total: int, start: int, count: int, name: str) -> list[int]:
        """Positions start .. start + count of an endless deal in which every epoch is a new permutation."""
        rows: list[int] = []
        while len(rows) < count:
            epoch, position = divmod(start + len(rows), total)
            key = int.from_bytes(Random(f"{self.seed} {name} {epoch}").randbytes(8), "big")
            order = np.random.default_rng(key).permutation(total)
            rows += order[position : position + count - len(rows)].tolist()
        return rows

    def _ask_about_photo(self, captions: Sequence[str], random: Random) -> _Sample:
        target, answer = random.choice(captions), random.choice(captions)
        return _Sample(target, [], self.builder.prompts.caption, answer, captions)

    def _make_scenes(
        self, step: int, batch: BatchSettings, random: Random
    ) -> tuple[list[_Sample], list[Image.Image]]:
        first = step * _SCENES_A_STEP
        alone = [make_scene(self.seed, first + index) for index in range(batch.scenes)]
        starts = range(
            first + batch.scenes, first + batch.scenes + batch.families * _FAMILY_SIZE, _FAMILY_SIZE
        )
        related = [scene for start in starts for scene in make_family(self.seed, start, _FAMILY_SIZE)]
        samples = [self._ask_about_scene(scene, random) for scene in alone]
        samples += [self._ask_about_relative(scene, random) for scene in related]
        # Drawn as the scenes' files are, then resized as the image processor does it.
        side = (self.image_size, self.image_size)
        drawn = [draw_scene(scene).resize(side, Image.Resampling.BICUBIC) for scene in alone + related]
        return samples, drawn

    def _ask_about_scene(self, scene: Scene, random: Random) -> _Sample:
        phrasings = [phrasing.caption for phrasing in phrase_scene(scene, random)]
        target = phrasings[0] if random.random() < _FULL_CAPTIONS else random.choice(phrasings)
        negatives = [random.choice(hard_negatives(scene, random)).caption]
        asked = (self.builder.prompts.caption, random.choice(phrasings))
        question, answer = asked if random.random() < 0.5 else random.choice(questions(scene))
        return _Sample(target, negatives, question, answer, phrasings)

    def _ask_about_relative(self, scene: Scene, random: Random) -> _Sample:
        """Say everything: anything less may be as true of the rest of the family."""
        target = unique_caption(scene) if random.random() < _FULL_CAPTIONS else retell_scene(scene, random)
        full = unique_caption(scene)
        return _Sample(target, [], self.builder.prompts.caption, full, [full])

    def _view_photos(self, rows: list[int], samples: list[_Sample], generator: Generator) -> Tensor:
        pictures = torch.from_numpy(self.photos.pixels[rows]).permute(0, 3, 1, 2).float() / 255
        sided = torch.tensor(
            [bool(_SIDED.search(s.target + " " + s.answer)) for s in samples], dtype=torch.bool
        )
        mirror = (torch.rand(len(rows), generator=generator) < 0.5) & ~sided
        settings = self.augmentation
        views = crop_randomly(pictures, self.image_size, settings.smallest_crop, mirror, generator)
        views = jitter_colours(views, settings.colour_jitter, generator)
        return erase_patches(views, settings.erased, generator)

    def _view_scenes(self, drawn: list[Image.Image], generator: Generator) -> Tensor:
        size = self.image_size
        pixels = (
            np.stack([np.asarray(picture) for picture in drawn])
            if drawn
            else np.empty((0, size, size, 3), np.uint8)
        )
        pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        return jitter_colours(pictures, _SCENE_COLOUR_JITTER, generator)


def mark_words(builder: InputBuilder, texts: Sequence[str]) -> Tensor:
    """Which tokens of the vocabulary each text holds: bool (texts, vocabulary)."""
    words = torch.zeros(len(texts), len(builder.tokenizer), dtype=torch.bool)
    for row, text in enumerate(texts):
        words[row, builder.tokenizer(text, add_special_tokens=False)["input_ids"]] = True
    return words


def _pack_by_length(rows: list[Row], length: Callable[[Row], int]) -> list[list[Row]]:
    """Rows in order of length, in parts of about `_PART_ROWS`: padding to the longest costs little."""
    ordered = sorted(rows, key=length)
    return [ordered[start : start + _PART_ROWS] for start in range(0, len(ordered), _PART_ROWS)]
