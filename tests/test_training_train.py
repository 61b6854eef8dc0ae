"""A whole training run, cut down to seconds: it learns, survives a kill, and leaves a usable model."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image
from torch import Tensor

from encoders.base import DatasetError, Fwd2BotError
from encoders.fwd2bot.checkpoint import load_checkpoint
from encoders.fwd2bot.encoder import Fwd2BotEncoder
from tests.tiny_models import LVLM
from tests.training_runs import CONFIG, make_base, make_settings, read_log, settle_on
from training import states
from training.data import Step
from training.data_settings import CaptionGroupSettings
from training.run_log import LOG_FILE, run_command
from training.settings import CheckpointSettings, TrainingSettings, end_run_at
from training.states import STATE_FILE
from training.train import DIVERGED_FILE, main, train
from training.trainer import Trainer, schedule_rate
from training.validate import read_held_out, score_measures

# Python 3.12 warns of forks in threaded processes; the loader's worker is forked before the model computes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.usefixtures("few_scenes"),
]


def train_until_killed(settings: TrainingSettings, data: Path, run: Path, step: int) -> None:
    """Train, and die without cleaning up after a step is logged and before its state is written."""
    torch.set_num_threads(1)
    whole = states.save_state

    def die_or_save(trainer: Trainer, path: Path) -> None:
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(trainer, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.train.save_state", die_or_save)
        train(settings, data, run)


def test_a_run_in_bfloat16_has_nearly_the_losses_of_one_in_float32(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(3)
    train(settings, data, tmp_path / "full")
    monkeypatch.setattr("encoders.precision._HARDWARE", ("avx512_bf16",))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    train(settings, data, tmp_path / "short")
    full, short = ([line for line in read_log(tmp_path / run) if "rate" in line] for run in ("full", "short"))
    assert len(full) == len(short) == 3 and full[0]["contrastive"] != short[0]["contrastive"]
    for wanted, found in zip(full, short, strict=True):
        losses = wanted.keys() & {"contrastive", "answer", "word"}
        assert losses and all(found[name] == pytest.approx(wanted[name], rel=0.02) for name in losses)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_run_on_a_gpu_has_nearly_the_losses_of_one_on_the_cpu(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(4)
    train(settings, data, tmp_path / "gpu")
    train(settings, data, tmp_path / "gpu")  # loads its state, with nothing left to do
    monkeypatch.setattr("training.distributed.choose_device", lambda _: "cpu")
    train(settings, data, tmp_path / "cpu")
    cpu, gpu = ([line for line in read_log(tmp_path / run) if "rate" in line] for run in ("cpu", "gpu"))
    assert len(cpu) == len(gpu) == 4
    for wanted, found in zip(cpu, gpu, strict=True):
        losses = wanted.keys() & {"contrastive", "answer", "word"}
        assert losses and all(found[name] == pytest.approx(wanted[name], rel=0.05) for name in losses)


def test_a_killed_run_goes_on_as_the_run_that_was_not(data: Path, tmp_path: Path) -> None:
    settings = make_settings(6)
    train(settings, data, tmp_path / "whole")
    killed = multiprocessing.get_context("fork").Process(
        target=train_until_killed, args=(settings, data, tmp_path / "killed", 4)
    )
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert [line["step"] for line in read_log(tmp_path / "killed")][-1] == 4
    assert torch.load(tmp_path / "killed" / STATE_FILE, weights_only=True)["step"] == 3
    (tmp_path / "killed" / "best").rename(tmp_path / "killed" / "best.old")  # as if killed while saving it
    train(settings, data, tmp_path / "killed")

    assert (tmp_path / "killed" / "best").is_dir() and not (tmp_path / "killed" / "best.old").exists()
    assert read_log(tmp_path / "killed") == read_log(tmp_path / "whole")
    assert [line["step"] for line in read_log(tmp_path / "whole")] == [1, 2, 3, 3, 4, 5, 6, 6]
    whole, resumed = (
        torch.load(tmp_path / run / STATE_FILE, weights_only=True) for run in ("whole", "killed")
    )
    assert whole["step"] == resumed["step"] == 6 and whole["best"] == resumed["best"]
    for name, value in whole["model"].items():
        assert torch.equal(resumed["model"][name], value), name


def test_a_run_cannot_end_before_the_step_that_it_has_come_to(data: Path, tmp_path: Path) -> None:
    settings = make_settings(3)
    train(end_run_at(settings, 2), data, tmp_path)
    with pytest.raises(DatasetError, match="has taken 2 steps already, and would end at 1"):
        train(end_run_at(settings, 1), data, tmp_path)
    train(settings, data, tmp_path)
    rates = [line["rate"] for line in read_log(tmp_path) if "rate" in line]
    assert rates == [schedule_rate(settings.optimizer, step, total) for step, total in enumerate((2, 2, 3))]


def test_a_run_learns_and_leaves_models_that_can_be_loaded(data: Path, tmp_path: Path) -> None:
    train(make_settings(40), data, tmp_path)
    validations = [line for line in read_log(tmp_path) if "caption_cross_entropy" in line]
    assert validations[-1]["caption_cross_entropy"] < validations[0]["caption_cross_entropy"] - 0.3
    for folder in ("model", "best"):
        encoder = Fwd2BotEncoder.load("new", tmp_path / folder, "cpu")
        assert encoder.summary_shape == (2, LVLM.width)
    summaries = encoder.encode_images([Image.new("RGB", (30, 30), "red")]).summaries
    assert isinstance(encoder.caption(summaries)[0], str)


def test_adapters_are_trained_on_a_base_that_stays_as_it_is(data: Path, tmp_path: Path) -> None:
    lvlm = make_base(tmp_path / "base")
    settings = settle_on(tmp_path / "base", make_settings(4), rows=5)
    train(settings, data, tmp_path / "run")
    assert set(read_log(tmp_path / "run")[0]) >= {"contrastive", "answer", "temperature", "tokens"}
    written = torch.load(tmp_path / "run" / STATE_FILE, weights_only=True)["model"]
    trained = [name for name in written if "lora" in name or name == "summary_tokens"]
    assert trained and not [name for name in written if "lm_head" in name or "vision_tower.encoder" in name]
    assert not (tmp_path / "run" / "model" / "base").exists()
    model = load_checkpoint(tmp_path / "run" / "model", "cpu").model
    kept = model.lvlm.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in lvlm.state_dict().items())
    assert any(value.abs().sum() > 0 for name, value in model.named_parameters() if "lora_B" in name)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "training.losses.ContrastiveLoss.forward", lambda *_: torch.tensor(float("nan"), requires_grad=True)
    )
    monkeypatch.setattr("training.train._ROWS_NAMED", 2)
    with pytest.raises(
        Fwd2BotError, match=r"nan at step 0: look at its 4 rows.*line \d of .*train.*, \.\.\."
    ):
        train(make_settings(3), data, tmp_path)
    named = (tmp_path / DIVERGED_FILE).read_text().splitlines()
    assert len(named) == 4 and all("captions_train" in row for row in named)
    assert not (tmp_path / STATE_FILE).exists()


def test_a_gradient_that_is_not_finite_stops_the_run_before_its_weights_are_lost(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trainer._run_both_passes

    def enlarge_words(trainer: Trainer, batch: Step) -> dict[str, Tensor]:
        trainer.model.lvlm.get_input_embeddings().weight.data.mul_(1e30)
        losses = whole(trainer, batch)
        assert all(torch.isfinite(loss) for loss in losses.values())
        return losses

    monkeypatch.setattr(Trainer, "_run_both_passes", enlarge_words)
    with pytest.raises(Fwd2BotError, match=r"length of the gradient is (inf|nan) at step 0: look at its 4"):
        train(make_settings(3), data, tmp_path)
    assert len((tmp_path / DIVERGED_FILE).read_text().splitlines()) == 4
    assert not (tmp_path / STATE_FILE).exists()


def test_a_broken_held_out_photo_stops_a_run_before_its_first_step(data: Path, tmp_path: Path) -> None:
    settings, copied = make_settings(3), shutil.copytree(data, tmp_path / "data")
    photo = read_held_out(settings.validation, copied, settings.validation.split)[-1].path
    photo.write_bytes(photo.read_bytes()[:100])
    with pytest.raises(DatasetError, match=f"{photo.name} cannot be decoded"):
        train(settings, copied, tmp_path / "run")
    assert not (tmp_path / "run" / LOG_FILE).exists()


def test_where_answers_alone_are_learned_the_best_model_is_the_one_that_tells_captions_best() -> None:
    settings, measures = make_settings(3), {"recall@10": 30.0, "caption_cross_entropy": 3.0}
    assert score_measures(measures, settings) == 30
    answers = replace(settings, lvlm=CheckpointSettings("tiny", trained="generate"))
    assert score_measures(measures, answers) == -3


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_where_texts_alone_are_paired_no_features_are_compared(
    data: Path, tmp_path: Path, loss: Literal["infonce", "sigmoid"]
) -> None:
    settings = make_settings(3)
    sources: dict[str, Any] = dict(settings.sources)
    sources |= {name: replace(sources[name], contrastive=name == "groups") for name in sources}
    assert settings.feature_weight
    train(replace(settings, sources=sources, contrastive_loss=loss), data, tmp_path)
    steps = [line for line in read_log(tmp_path) if "rate" in line]
    assert len(steps) == 3 and "contrastive" in steps[2] and "feature" not in steps[2]


@pytest.mark.parametrize(
    ("folder", "named"), [(".", "dataset_flickr8k.json"), ("none", "no folder .*--data")]
)
def test_missing_data_is_one_line_and_exit_code_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str, named: str
) -> None:
    assert main([str(CONFIG), "--data", str(tmp_path / folder), "--run", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(named, error)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_can_read_none_of_its_rows_ends_in_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    """Whichever process prepares the steps: an error in a worker ends the run like one in this process."""
    settings = make_settings(4)
    (tmp_path / "groups.jsonl").write_text('{"captions": []}\n' * 3)
    groups = CaptionGroupSettings("caption_groups", str(tmp_path / "groups.jsonl"), True, True)
    sources = {**settings.sources, "groups": groups}
    settings = replace(settings, sources=sources, workers=workers)
    assert run_command(lambda: train(settings, data, tmp_path / "run")) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "passes over" not in line]
    assert re.fullmatch(r"error: \d+ rows of source groups one after the other cannot be used.*", lines[-1])
    assert not any("Traceback" in line for line in lines)


def test_a_full_disk_is_one_line_wherever_it_is_met(capsys: pytest.CaptureFixture[str]) -> None:
    def write_log() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert run_command(write_log) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "No space left" in error


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def be_stopped() -> None:
        raise KeyboardInterrupt

    assert run_command(be_stopped) == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "goes on from it when it is started again" in error


def test_a_damaged_photo_to_be_judged_by_is_named(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "flickr8k" / "images" / "12.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"12\.png cannot be decoded"):
        train(make_settings(3), tmp_path / "data", tmp_path / "run")
