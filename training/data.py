"""What one training step reads: rows of several sources, mixed by count.

Every step is a function of (seed, step) alone, so a resumed run sees the same data as an uninterrupted one.
With several ranks, each builds its own rows of the global step: every rank reads the texts of all rows, so
that all draw the same random numbers, but decodes only its own pictures.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import BatchEncoding

from benchmarks.scenes import Scene, draw_scene
from encoders.base import DatasetError
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import Answers
from training.augment import Chance
from training.data_settings import AugmentationSettings, BatchSettings
from training.deal import Deal, DealtRow
from training.distributed import ALONE, Ranks
from training.guides import Guides, GuideTable
from training.packing import PART_ROWS, Row, mark_words, pack_answers, pack_targets
from training.settings import TrainingSettings, require_losses
from training.sources.base import Sample
from training.sources.drawn import DrawnSource
from training.sources.karpathy import KarpathySource
from training.sources.open import Sources, require_batches
from training.views import SquareViews

_SIDED = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_ID_SPACE = 10**9  # ids reserved for each source; more than the rows of any
_SCENES_A_STEP = 100_000  # scene numbers reserved for each step; more than any draws


class Step(NamedTuple):
    """One rank's rows of a global batch; a source and a target with equal ids are positives.

    Rows that show the same picture share one id. sources: parts that pass 1 reads, those with pictures first.
    targets: parts of texts to match with them, and hard negatives. source_ids, paired: int64 and bool
    (sources,); only paired sources have targets and take part in the contrastive loss. words: bool (images,
    vocabulary), the tokens in each image's captions; (0, vocabulary) if pictures go through the LVLM's own
    processor. guides: None without teachers. tower_only: from the batch's settings, the same on every rank;
    such a step has no targets and no answers.
    """

    sources: list[BatchEncoding]
    targets: list[BatchEncoding]
    answers: list[Answers]
    source_ids: Tensor
    target_ids: Tensor
    words: Tensor
    paired: Tensor
    guides: Guides | None = None
    tower_only: bool = False

    def to(self, device: torch.device) -> "Step":
        """The same step on another device."""
        return Step(
            [inputs.to(device) for inputs in self.sources],
            [inputs.to(device) for inputs in self.targets],
            [Answers(a.sources.to(device), a.inputs.to(device), a.labels.to(device)) for a in self.answers],
            self.source_ids.to(device),
            self.target_ids.to(device),
            self.words.to(device),
            self.paired.to(device),
            self.guides.to(device) if self.guides else None,
            self.tower_only,
        )


class _Plan(NamedTuple):
    """The rows of a global step, before any picture is decoded or drawn."""

    photos: list[tuple[str, DealtRow]]
    scenes: list[tuple[Row, Scene]]
    texts: list[Row]


class StepDataset(Dataset[Step]):
    """Maps a step number to a Step. The rows of a source come in epochs; drawn scenes are new at every step.

    augmentation: None leaves pictures to the LVLM's own processor. ranks: builds the share of this rank.
    teachers: the folder with their embeddings of the rows (see `training.guides`).
    """

    def __init__(
        self,
        sources: Sources,
        builder: InputBuilder,
        batches: Sequence[BatchSettings],
        augmentation: AugmentationSettings | None,
        seed: int,
        ranks: Ranks = ALONE,
        teachers: Path | None = None,
    ) -> None:
        require_batches(sources, batches, ranks.count, teachers is not None)
        self.sources, self.builder, self.batches, self.seed = sources, builder, batches, seed
        self.ranks = ranks
        self.views = SquareViews(builder, augmentation) if augmentation else None
        self._first_ids = _space_ids(sources)
        self.guides = GuideTable(teachers, self._first_ids) if teachers else None
        self._deals = {
            name: Deal(name, source, seed)
            for name, source in sources.items()
            if not isinstance(source, DrawnSource)
        }
        for source in sources.values():
            if isinstance(source, KarpathySource) and source.settings.in_memory:
                source.hold_pictures(self._require_views().side)

    def __len__(self) -> int:
        return sum(batch.steps for batch in self.batches)

    def __getitem__(self, step: int) -> Step:
        batch, before = self._locate(step)
        random = Random(f"{self.seed} {step}")
        generator = torch.Generator().manual_seed(random.getrandbits(60))
        plan = self._plan(batch.counts, before, step * _SCENES_A_STEP, random)
        # Rows go to the ranks round-robin, continuing from one kind of row to the next, so no rank has none.
        counts, ranks = (len(plan.photos), len(plan.scenes)), self.ranks.count
        firsts = [(self.ranks.rank - start) % ranks for start in accumulate(counts, initial=0)]
        twins = self._find_twins(plan.photos)
        photos = [self._load_photo(name, dealt, twins) for name, dealt in plan.photos[firsts[0] :: ranks]]
        scenes = [(row, draw_scene(scene)) for row, scene in plan.scenes[firsts[1] :: ranks]]
        seen, texts = [row for row, _ in [*photos, *scenes]], plan.texts[firsts[2] :: ranks]
        chances = [Chance(generator, rows, first, ranks) for rows, first in zip(counts, firsts, strict=False)]
        sources = self._show(photos, scenes, chances) if seen else []
        if texts:
            sources.append(self.builder.texts([row.sample.text for row in texts]))
        words = mark_words(self.builder, [" ".join(row.sample.captions) for row in seen if self.views])
        return self._assemble(sources, [*seen, *texts], words, batch.tower_only)

    def describe_rows(self, ids: Sequence[int]) -> list[str]:
        """Human-readable names of the rows with these ids, for finding them in the data."""
        names = {first: name for name, first in self._first_ids.items()}
        described = list[str]()
        for known in ids:
            place, row = divmod(known, _ID_SPACE)
            source = self.sources[names[place * _ID_SPACE]]
            described.append("a drawn scene" if isinstance(source, DrawnSource) else source.describe_row(row))
        return described

    def _plan(self, counts: dict[str, int], before: Counter[str], first_scene: int, random: Random) -> _Plan:
        plan = _Plan([], [], [])
        for name, source in self.sources.items():
            if isinstance(source, DrawnSource):
                start = len(plan.scenes)
                scenes, samples = source.draw_samples(
                    self.seed, first_scene + start, counts.get(name, 0), random
                )
                for scene, sample in zip(scenes, samples, strict=True):
                    plan.scenes.append((self._make_row(name, len(plan.scenes), sample), scene))
                continue
            for dealt in self._deals[name].deal_rows(before[name], counts.get(name, 0), random):
                if dealt.sample.text:
                    plan.texts.append(self._make_row(name, dealt.row, dealt.sample))
                else:
                    plan.photos.append((name, dealt))
        return plan

    def _make_row(self, name: str, number: int, sample: Sample) -> Row:
        settings = self.sources[name].settings
        return Row(self._first_ids[name] + number, sample, settings.contrastive, settings.answer)

    def _find_twins(self, photos: list[tuple[str, DealtRow]]) -> dict[Path, int]:
        """The id of the first row in the step that shows each picture: captions of all its rows match it."""
        twins: dict[Path, int] = {}
        for name, dealt in photos:
            if dealt.sample.picture:
                twins.setdefault(dealt.sample.picture, self._first_ids[name] + dealt.row)
        return twins

    def _load_photo(self, name: str, dealt: DealtRow, twins: dict[Path, int]) -> tuple[Row, Image.Image]:
        side = self.views.side if self.views else 0
        dealt, picture = self._deals[name].load_picture(dealt, side)
        row = self._make_row(name, dealt.row, dealt.sample)
        return row._replace(id=twins.get(dealt.sample.picture or Path(), row.id)), picture

    def _show(
        self,
        photos: list[tuple[Row, Image.Image]],
        scenes: list[tuple[Row, Image.Image]],
        chances: list[Chance],
    ) -> list[BatchEncoding]:
        pictures = [picture for _, picture in photos], [picture for _, picture in scenes]
        if self.views:
            plain = torch.tensor([not _is_sided(row.sample) for row, _ in photos], dtype=torch.bool)
            return [self.views.show(*pictures, plain, *chances)]
        every = [*pictures[0], *pictures[1]]
        return [
            self.builder.images(every[start : start + PART_ROWS]) for start in range(0, len(every), PART_ROWS)
        ]

    def _assemble(
        self, sources: list[BatchEncoding], rows: list[Row], words: Tensor, tower_only: bool
    ) -> Step:
        targets = pack_targets(self.builder, [] if tower_only else rows)
        answers = pack_answers(self.builder, [] if tower_only else rows)
        ids, paired = torch.tensor([row.id for row in rows]), torch.tensor([row.contrastive for row in rows])
        guides = self._guide(rows, targets.texts) if self.guides else None
        return Step(sources, targets.parts, answers, ids, targets.ids, words, paired, guides, tower_only)

    def _guide(self, rows: list[Row], targets: list[str]) -> Guides:
        """Teachers' embeddings of the sources, those with pictures first, and of the targets."""
        assert self.guides is not None
        seen, read = ([row for row in rows if bool(row.sample.text) is text] for text in (False, True))
        pictures = self.guides.find_pictures([row.id for row in seen])
        texts = self.guides.find_texts([row.sample.text for row in read])
        return Guides(torch.cat([pictures, texts]), self.guides.find_texts(targets))

    def _locate(self, step: int) -> tuple[BatchSettings, Counter[str]]:
        """The batch settings at a step, and how many rows of each source were dealt before it."""
        before: Counter[str] = Counter()
        for batch in self.batches:
            done = min(step, batch.steps)
            before.update({name: done * count for name, count in batch.counts.items()})
            if step < batch.steps:
                return batch, before
            step -= batch.steps
        raise IndexError(f"step is {step} past the last")

    def _require_views(self) -> SquareViews:
        if self.views is None:
            raise DatasetError(
                "Photos are held in_memory as squares, which need [augmentation]: set in_memory = false"
            )
        return self.views


def open_dataset(
    settings: TrainingSettings, sources: Sources, builder: InputBuilder, ranks: Ranks = ALONE
) -> StepDataset:
    """The steps of a run, with the teachers' embeddings if it has teachers.

    Raises DatasetError if a batch cannot be made, or would train nothing.
    """
    require_losses(settings)
    teachers = Path(settings.distillation.teachers) if settings.distillation else None
    return StepDataset(
        sources, builder, settings.batches, settings.augmentation, settings.seed, ranks, teachers
    )


def _space_ids(sources: Sources) -> dict[str, int]:
    """The first id of each source; all drawn sources share one id range."""
    spaces: dict[object, int] = {}
    keys = {
        name: DrawnSource if isinstance(source, DrawnSource) else name for name, source in sources.items()
    }
    return {name: spaces.setdefault(key, len(spaces) * _ID_SPACE) for name, key in keys.items()}


def _is_sided(sample: Sample) -> bool:
    """Whether a text says left or right, so that mirroring the picture would make it false."""
    said = [sample.target, *(text for turn in sample.turns for text in turn)]
    return any(_SIDED.search(text) for text in said)
