"""Two towers: as many weights as Fwd2Bot, the same rows in the same order, and a run that survives a kill."""

import json
import math
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.base import DatasetError
from tests.training_runs import CONFIG, make_base, make_settings, read_log, settle_on, write_tested_colours
from training import states
from training.data import StepDataset, open_dataset
from training.initial_model import make_initial_model
from training.settings import BatchSettings, LvlmSettings, TrainingSettings, end_run_at, read_settings
from training.sources.open import open_sources
from training.train import train
from training.trainer import Trainer
from training.two_tower import (
    TwoTowers,
    adapt_settings,
    count_weights,
    load_two_towers,
    main,
    make_two_towers,
    train_two_towers,
    write_plainly,
)

# Python 3.12 warns of forks in threaded processes; the loader's worker is forked before the model computes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.usefixtures("few_scenes"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures of four colours, four of them both val and test."""
    return write_tested_colours(tmp_path_factory.mktemp("data"))


def make_towers(settings: TrainingSettings, data: Path) -> tuple[TwoTowers, StepDataset, int]:
    """The towers, their dataset, and the number of weights of the corresponding Fwd2Bot."""
    assert isinstance(settings.lvlm, LvlmSettings)
    sources = open_sources(settings.sources, data)
    initial = make_initial_model(settings, sources, torch.device("cpu"))
    builder = write_plainly(initial.builder)
    towers = make_two_towers(initial.model, settings.lvlm, builder)
    dataset = open_dataset(settings, sources, builder)
    return towers.eval(), dataset, count_weights(initial.model)


@pytest.mark.parametrize("share", [0.0, -1.0, math.nan, math.inf])
def test_a_share_is_one_of_steps_that_there_are(share: float) -> None:
    with pytest.raises(DatasetError, match=f"A share of {share} is none"):
        adapt_settings(read_settings(CONFIG), share)


def test_both_models_have_the_same_number_of_weights(data: Path) -> None:
    towers, _, wanted = make_towers(read_settings(CONFIG), data)
    assert abs(count_weights(towers) - wanted) < 0.02 * wanted


def test_the_rows_and_views_of_a_step_are_those_that_fwd2bot_is_trained_on(data: Path) -> None:
    settings = make_settings(4)
    _, plain, _ = make_towers(adapt_settings(settings, 1.0), data)
    sources = open_sources(settings.sources, data)
    builder = make_initial_model(settings, sources, torch.device("cpu")).builder
    original = open_dataset(settings, sources, builder)
    assert len(plain) == len(original) == 4
    for ours, theirs in zip(
        map(plain.__getitem__, range(4)), map(original.__getitem__, range(4)), strict=True
    ):
        assert torch.equal(ours.source_ids, theirs.source_ids) and torch.equal(ours.paired, theirs.paired)
        assert torch.equal(ours.words, theirs.words)
        for mine, other in zip(ours.sources, theirs.sources, strict=True):
            assert ("pixel_values" in mine) == ("pixel_values" in other)
            if "pixel_values" in mine:
                assert torch.equal(mine["pixel_values"], other["pixel_values"])
        assert ours.answers == [] and ours.targets
        if theirs.targets:  # there are none where only the vision tower is trained
            said, prompted = (
                builder.tokenizer.batch_decode(part["input_ids"], skip_special_tokens=True)
                for part in (ours.targets[0], theirs.targets[0])
            )
            instruction = f" {settings.prompts.text.lower()}"
            assert [text.strip() for text in said] == [
                text.removesuffix(instruction).strip() for text in prompted
            ]


def test_padding_and_company_change_no_embedding(data: Path) -> None:
    towers, dataset, _ = make_towers(make_settings(4), data)
    together = towers.compress(dataset.builder.texts(["a dog", "a dog that runs over a green wall"]))
    alone = towers.compress(dataset.builder.texts(["a dog"]))
    torch.testing.assert_close(together[:1], alone)
    assert not torch.allclose(together[0], together[1])


def test_a_share_of_a_run_has_that_share_of_every_phase() -> None:
    settings = replace(
        make_settings(4), batches=(BatchSettings(10, {"groups": 2}), BatchSettings(30, {}, tower_only=True))
    )
    optimizer = replace(settings.optimizer, warmup_steps=4, cooldown_steps=20)
    half = adapt_settings(replace(settings, optimizer=optimizer), 0.5)
    assert half.batches == (BatchSettings(5, {"groups": 2}), BatchSettings(15, {}))
    assert (half.optimizer.warmup_steps, half.optimizer.cooldown_steps) == (2, 10)


def test_a_run_of_a_share_of_the_steps_ends_at_the_step_that_is_named() -> None:
    settings = replace(make_settings(4), batches=(BatchSettings(10, {"groups": 2}),))
    assert [adapt_settings(settings, 0.5, step).total_steps for step in (None, 5, 2)] == [5, 5, 2]
    assert adapt_settings(settings, 1.5, 13).total_steps == 13
    with pytest.raises(DatasetError, match="have 5 steps: a run ends at one of these, and not at 6"):
        adapt_settings(settings, 0.5, 6)


def run_until_killed(settings: TrainingSettings, data: Path, run: Path) -> None:
    """Train, and die before the state of step 4 is written."""
    torch.set_num_threads(1)
    whole = states.save_state

    def die_or_save(trainer: Trainer, path: Path) -> None:
        if trainer.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(trainer, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.train.save_state", die_or_save)
        train_two_towers(settings, data, run)


def test_a_killed_run_goes_on_to_the_losses_of_one_that_was_not(data: Path, tmp_path: Path) -> None:
    settings = make_settings(6)
    whole = train_two_towers(settings, data, tmp_path / "whole")
    killed = multiprocessing.get_context("fork").Process(
        target=run_until_killed, args=(settings, data, tmp_path / "killed")
    )
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert train_two_towers(settings, data, tmp_path / "killed") == whole
    assert read_log(tmp_path / "killed") == read_log(tmp_path / "whole")
    assert all(np.isfinite(line["contrastive"]) for line in read_log(tmp_path / "whole") if "rate" in line)
    written = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert written["steps"] == 6 and set(written["recall"]) == {"val", "test"}
    assert written["recall"]["test"]["text_to_image"]["queries"] == 8
    assert written["weights"]["two_towers"] == whole["weights"]["two_towers"]


def test_two_towers_learn(data: Path, tmp_path: Path) -> None:
    train_two_towers(replace(make_settings(40), gradient_checkpointing=True), data, tmp_path)
    losses = [line["contrastive"] for line in read_log(tmp_path) if "rate" in line][2:]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3


def test_settings_on_a_base_are_refused(data: Path, tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    settings = settle_on(tmp_path / "base", make_settings(4), rows=5)
    with pytest.raises(DatasetError, match=r"shape and no base"):
        train_two_towers(settings, data, tmp_path / "run")
    train(end_run_at(settings, 1), data, tmp_path / "run")
    with pytest.raises(DatasetError, match=r"shape and no base"):
        load_two_towers(tmp_path / "run", data)


def test_missing_data_is_one_line_and_exit_code_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(CONFIG), "--data", str(tmp_path), "--run", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "dataset_flickr8k.json" in error
