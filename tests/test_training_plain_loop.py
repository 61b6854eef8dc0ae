"""The plain loop computes what the tuned step computes, so that their times can be compared."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from encoders.base import DatasetError
from tests.training_runs import CONFIG, make_settings
from training.data import StepDataset, open_dataset
from training.distributed import ALONE
from training.grad_cache import Chunk
from training.initial_model import make_initial_model
from training.plain_loop import PlainTrainer, compare_loops, main
from training.settings import BatchSettings, TrainingSettings
from training.sources.open import open_sources
from training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("few_scenes")


def make_pair(settings: TrainingSettings, data: Path) -> tuple[Trainer, PlainTrainer, StepDataset]:
    sources = open_sources(settings.sources, data)
    model, builder, words = make_initial_model(settings, sources, torch.device("cpu"))
    dataset = open_dataset(settings, sources, builder)
    plain = PlainTrainer(settings, copy.deepcopy(model), copy.deepcopy(words), ALONE)
    return Trainer(settings, model, words, ALONE), plain, dataset


def test_without_rounding_both_find_the_same_losses_and_weights(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(4)
    tuned, plain, dataset = make_pair(settings, data)

    def forward_exactly(chunk: Chunk) -> object:
        return tuned.model(chunk.sources, chunk.targets, chunk.answers)

    monkeypatch.setattr(tuned, "_forward", forward_exactly)
    for number in (0, 2):  # a step of texts alone, and one of everything
        step = dataset[number]
        first, second = (trainer.train_step(step).losses for trainer in (tuned, plain))
        assert first == pytest.approx(second, rel=1e-4) and "answer" in first
    for one, other in zip(tuned.model.parameters(), plain.model.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3)


def test_rates_are_of_the_last_batch_that_runs_the_llm(data: Path) -> None:
    found = compare_loops(make_settings(4), data, 1)
    assert (found.steps, found.images_a_step) == (1, 10)
    assert found.ratio == pytest.approx(found.tuned_images_per_second / found.plain_images_per_second)
    assert set(found.tuned_losses) == {"contrastive", "feature", "word", "answer"}
    assert found.tuned_losses == pytest.approx(found.plain_losses, rel=0.05)


def test_a_recipe_without_such_a_batch_is_refused(data: Path) -> None:
    settings = replace(make_settings(4), batches=(BatchSettings(1, {"photos": 4}, tower_only=True),))
    with pytest.raises(DatasetError, match="nothing to time in 1 steps of 0 kinds"):
        compare_loops(settings, data, 1)


def test_the_command_prints_one_record_or_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.plain_loop.read_settings", lambda *_: make_settings(4))
    assert main([str(CONFIG), "--data", str(data), "--steps", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1
    assert main([str(CONFIG), "--data", str(tmp_path), "--steps", "1"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
