"""A whole training run, minutes made seconds: it learns, it can be killed, and what it leaves can be used."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.base import Fwd2BotError
from encoders.fwd2bot.encoder import Fwd2BotEncoder
from encoders.fwd2bot.model import AdapterSettings
from tests.tiny_models import LVLM
from training.data import Step
from training.settings import BatchSettings, TrainingSettings, read_settings
from training.train import main, train
from training.trainer import Trainer

CONFIG = Path(__file__).parent.parent / "training" / "configs" / "tiny.toml"
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (250, 250, 250)}

# Python 3.12 warns of every fork; the loader's worker is forked before the model computes.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen noisy pictures of four colours, in the form of the shipped settings' data."""
    folder = tmp_path_factory.mktemp("data")
    images = folder / "flickr8k" / "images"
    images.mkdir(parents=True)
    random = np.random.default_rng(0)
    records = []
    for number in range(16):
        colour = list(COLOURS)[number % 4]
        pixels = np.clip(np.array(COLOURS[colour]) + random.integers(-20, 20, (24, 24, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(images / f"{number}.png")
        sentences = [{"raw": f"a {colour} wall"}, {"raw": f"the wall is {colour}"}]
        split = "val" if number >= 12 else "train" if number else "restval"
        records.append({"filename": f"{number}.png", "split": split, "sentences": sentences})
    (folder / "flickr8k" / "dataset_flickr8k.json").write_text(json.dumps({"images": records}))
    groups = [{"captions": [f"a {colour} door", f"the door is {colour}"]} for colour in COLOURS]
    (folder / "flickr30k_text").mkdir()
    lines = "".join(json.dumps(group) + "\n" for group in groups)
    (folder / "flickr30k_text" / "captions_train.jsonl").write_text(lines)
    return folder


def make_settings(steps: int) -> TrainingSettings:
    settings = read_settings(CONFIG)
    optimizer = replace(settings.optimizer, learning_rate=3e-3, warmup_steps=2, cooldown_steps=2)
    return replace(
        settings,
        lvlm=LVLM,
        summary_tokens=2,
        adapters=AdapterSettings(4, 4),
        optimizer=optimizer,
        batches=(
            BatchSettings(1, {"groups": 4}),
            BatchSettings(1, {"photos": 4, "scenes": 2, "families": 4}, tower_only=True),
            BatchSettings(steps - 2, {"photos": 4, "scenes": 2, "families": 4, "groups": 1}),
        ),
        validate_every=max(3, steps // 2),
        checkpoint_seconds=0,
        compiled=False,
    )


def read_log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_run_that_was_stopped_ends_as_the_run_that_was_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(6)
    train(settings, data, tmp_path / "whole")

    original = Trainer.train_step

    def stop_at_three(self: Trainer, batch: Step) -> dict[str, float]:
        if self.step == 3:
            raise KeyboardInterrupt
        return original(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", stop_at_three)
        train(settings, data, tmp_path / "stopped")
    train(settings, data, tmp_path / "stopped")
    whole, stopped = (
        torch.load(tmp_path / run / "state.pt", weights_only=True) for run in ("whole", "stopped")
    )
    assert whole["step"] == stopped["step"] == 6
    for name, value in whole["model"].items():
        assert torch.equal(stopped["model"][name], value), name
    assert read_log(tmp_path / "whole")[-1]["step"] == 6


def test_a_run_learns_and_leaves_a_model_that_can_be_loaded(data: Path, tmp_path: Path) -> None:
    train(make_settings(40), data, tmp_path)
    validations = [line for line in read_log(tmp_path) if "caption_cross_entropy" in line]
    assert validations[-1]["caption_cross_entropy"] < validations[0]["caption_cross_entropy"] - 0.3
    encoder = Fwd2BotEncoder.load("new", tmp_path / "model", "cpu")
    assert encoder.summary_shape == (2, LVLM.width)
    summaries = encoder.encode_images([Image.new("RGB", (30, 30), "red")]).summaries
    assert isinstance(encoder.caption(summaries)[0], str)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "training.losses.ContrastiveLoss.forward", lambda *_: torch.tensor(float("nan"), requires_grad=True)
    )
    with pytest.raises(Fwd2BotError, match=r"nan at step 0, .*20000000"):
        train(make_settings(3), data, tmp_path)


def test_missing_data_is_one_line_and_exit_code_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(CONFIG), "--data", str(tmp_path), "--run", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "dataset_flickr8k.json" in error
