"""Another vision tower for a checkpoint: what the LLM then sees, what is refused, and resuming a run."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchEncoding

from encoders.base import DatasetError
from encoders.fwd2bot.checkpoint import load_checkpoint
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import Fwd2Bot
from tests.tiny_models import LVLM
from tests.training_runs import make_settings, read_log, write_tested_colours
from training.graft import graft_tower
from training.settings import BatchSettings, CheckpointSettings, TrainingSettings
from training.train import train
from training.two_tower import train_two_towers

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.usefixtures("few_scenes"),
]


class Towers(NamedTuple):
    """A two-tower run, and its data, which have a test split."""

    run: Path
    data: Path


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Towers:
    folder = tmp_path_factory.mktemp("towers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.initial_model._TOKENIZER_SCENES", 60)
        train_two_towers(make_settings(4), write_tested_colours(folder / "data"), folder / "run")
    return Towers(folder / "run", folder / "data")


def load(run: Path) -> tuple[Fwd2Bot, list[BatchEncoding]]:
    """A checkpoint, and pictures with more image tokens than its projector has weights per output."""
    model, processor, prompts, *_ = load_checkpoint(run / "model", "cpu")
    builder = InputBuilder(processor, prompts, model.summary_shape[0])
    random = np.random.default_rng(1)
    pictures = [Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(30)]
    return model.eval(), [builder.images(pictures[:20]), builder.images(pictures[20:])]


@torch.no_grad()
def read_tower(model: Fwd2Bot, batches: list[BatchEncoding]) -> Tensor:
    """The tower's features, flattened as in transformers' FastVLM: (tokens, tower's width)."""
    maps = [model.lvlm.model.vision_tower(inputs["pixel_values"]).last_hidden_state for inputs in batches]
    return torch.cat([each.flatten(2).transpose(1, 2).flatten(0, 1) for each in maps])


def save_tower(model: Fwd2Bot, folder: Path) -> Path:
    """Save the model's own tower in the form that a two-tower run leaves."""
    weights = model.lvlm.model.vision_tower.state_dict()
    folder.mkdir()
    torch.save(
        {"model": {f"image_tower.{name}": value for name, value in weights.items()}}, folder / "state.pt"
    )
    return folder


def test_its_own_tower_changes_nothing(run: Path, tmp_path: Path) -> None:
    model, batches = load(run)
    with torch.no_grad():
        before = [model.compress(inputs) for inputs in batches]
        graft_tower(model, save_tower(model, tmp_path / "own"), batches)
        for inputs, wanted in zip(batches, before, strict=True):
            torch.testing.assert_close(model.compress(inputs), wanted, atol=1e-4, rtol=1e-4)


def test_the_projector_is_the_least_squares_fit_to_what_it_made_before(run: Path, towers: Towers) -> None:
    model, batches = load(run)
    layer = model.lvlm.model.multi_modal_projector.linear_1
    with torch.no_grad():
        wanted = layer(read_tower(model, batches)).numpy()
        graft_tower(model, towers.run, batches)
        features = read_tower(model, batches)
        found = layer(features).numpy()
    ones = np.c_[features.numpy(), np.ones(len(features))].astype(np.float64)
    best = ones @ np.linalg.lstsq(ones, wanted.astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose(found, best, atol=1e-4)
    assert not np.allclose(found, wanted, atol=1e-3)


def graft_settings(run: Path, tower: Path, steps: int) -> TrainingSettings:
    settings = make_settings(max(steps, 3))
    return replace(
        settings,
        lvlm=CheckpointSettings(str(run / "model"), tower=str(tower)),
        word_weight=0.0,
        batches=(BatchSettings(steps, {"photos": 4, "groups": 1}),),
    )


def test_a_run_that_goes_on_keeps_what_it_has_learned_of_its_new_tower(
    run: Path, towers: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.train._FITTED_STEPS", 2)  # as many as the shorter run has
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    settings = graft_settings(run, towers.run, 4)
    steady = replace(settings, optimizer=replace(settings.optimizer, cooldown_steps=0))
    train(steady, towers.data, whole)
    train(replace(steady, batches=(replace(steady.batches[0], steps=2),)), towers.data, halved)
    train(steady, towers.data, halved)
    losses = [
        [line["contrastive"] for line in read_log(each) if "contrastive" in line] for each in (whole, halved)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_a_tower_of_another_shape_is_refused(run: Path, tmp_path: Path) -> None:
    model, batches = load(run)
    other = save_tower(model, tmp_path / "other")
    state = torch.load(other / "state.pt", weights_only=True)
    state["model"] = {name: value[..., :1] for name, value in state["model"].items() if value.ndim}
    torch.save(state, other / "state.pt")
    with pytest.raises(DatasetError, match=r"holds no image tower like the model's"):
        graft_tower(model, other, batches)


@pytest.mark.parametrize("state", [{"model": {}}, {}, {"model": {"lm_head.weight": torch.ones(LVLM.width)}}])
def test_a_run_without_an_image_tower_is_refused(
    run: Path, tmp_path: Path, state: dict[str, dict[str, Tensor]]
) -> None:
    model, batches = load(run)
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(DatasetError, match=r"holds no image tower like the model's"):
        graft_tower(model, tmp_path, batches)


def test_a_folder_without_a_run_is_named(run: Path, tmp_path: Path) -> None:
    model, batches = load(run)
    with pytest.raises(DatasetError, match=r"nowhere is not a training run"):
        graft_tower(model, tmp_path / "nowhere", batches)


def test_steps_without_pictures_are_refused(run: Path, towers: Towers) -> None:
    model, _ = load(run)
    with pytest.raises(DatasetError, match=r"first steps have none"):
        graft_tower(model, towers.run, [])


def test_a_model_without_such_a_projector_is_refused(run: Path, towers: Towers) -> None:
    model, batches = load(run)
    del model.lvlm.model.multi_modal_projector
    with pytest.raises(DatasetError, match=r"A fast_vlm has no projector as LLaVA's"):
        graft_tower(model, towers.run, batches)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_fits_what_the_cpu_does(run: Path, towers: Towers) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model, batches = load(run)
        graft_tower(model.to(device), towers.run, batches)
        with torch.no_grad():
            found.append(model.compress(batches[0]).cpu())
    torch.testing.assert_close(found[1], found[0], atol=2e-2, rtol=2e-2)
