"""Training pass 2 alone changes its answers, but not what is stored and found."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.scenes import questions
from encoders.base import DatasetError
from encoders.fwd2bot.encoder import Fwd2BotEncoder
from encoders.fwd2bot.model import AdapterSettings
from tests.tiny_models import make_pictures
from tests.training_runs import make_settings
from training.data_settings import BatchSettings, DrawnSettings
from training.initial_model import make_initial_model
from training.settings import CheckpointSettings, TrainingSettings
from training.sources.drawn import DrawnSource
from training.sources.open import open_sources
from training.train import train

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.usefixtures("few_scenes"),
]
WORDS = ["a red wall", "the door is blue"]


def teach_answers(run: Path, **changes: Any) -> TrainingSettings:
    settings = replace(
        make_settings(3),
        lvlm=CheckpointSettings(str(run / "model"), trained="generate"),
        sources={"scenes": DrawnSettings("scenes", True, True, questions=3)},
        batches=(BatchSettings(3, {"scenes": 4}),),
        contrastive_weight=0.0,
        feature_weight=0.0,
        word_weight=0.0,
    )
    return replace(settings, **changes)


def test_pass_two_taught_alone_leaves_what_is_stored_and_found_to_the_last_bit(
    run: Path, data: Path, tmp_path: Path
) -> None:
    settings = teach_answers(run)
    assert settings.augmentation and "photos" not in settings.sources  # a step may hold nothing but scenes
    train(settings, data, tmp_path)
    before, after = (Fwd2BotEncoder.load("m", folder / "model", "cpu") for folder in (run, tmp_path))
    seen, known = before.encode_images(make_pictures()), after.encode_images(make_pictures())
    assert seen.summaries is not None and known.summaries is not None
    assert np.array_equal(seen.summaries, known.summaries)
    assert np.array_equal(before.encode_texts(WORDS), after.encode_texts(WORDS))
    summaries = seen.summaries[: len(WORDS)]
    assert not np.array_equal(before.match(summaries, WORDS), after.match(summaries, WORDS))


@pytest.mark.parametrize(
    ("size", "tower", "changes"),
    [
        (0, "", {"contrastive_weight": 1.0}),
        (0, "", {"feature_weight": 1.0}),
        (24, "", {}),
        (0, "runs/teacher", {}),
    ],
)
def test_what_would_change_embeddings_is_refused(
    size: int, tower: str, changes: dict[str, Any], run: Path, data: Path
) -> None:
    start = CheckpointSettings(str(run / "model"), size, "generate", tower)
    settings = teach_answers(run, lvlm=start, **changes)
    with pytest.raises(DatasetError, match="leaves embeddings as they are"):
        make_initial_model(settings, open_sources(settings.sources, data), torch.device("cpu"))


def test_one_adapter_for_both_passes_cannot_be_taught_for_one(data: Path, tmp_path: Path) -> None:
    shared = AdapterSettings(4, 4, "shared")
    train(replace(make_settings(3), adapters=shared), data, tmp_path)
    settings = teach_answers(tmp_path, adapters=shared)
    with pytest.raises(DatasetError, match="not shared"):
        make_initial_model(settings, open_sources(settings.sources, data), torch.device("cpu"))


@pytest.mark.parametrize(("asked", "turns"), [(0, 1), (3, 4), (10_000, None)])
def test_a_scene_is_asked_as_many_questions_as_the_settings_say(asked: int, turns: int | None) -> None:
    source = DrawnSource(DrawnSettings("scenes", True, True, questions=asked))
    for scene, sample in zip(*source.draw_samples(1, 0, 5, Random(0)), strict=True):
        known = questions(scene)
        assert len(sample.turns) == (turns or len(known) + 1)
        said = [(turn.question, turn.answer) for turn in sample.turns if turn.question]
        assert set(said) <= set(known) and len(said) == len(set(said))
        assert not asked or (sample.turns[0].question == "" and len(said) == len(sample.turns) - 1)
