"""What a run leaves on disk: it can be loaded, belongs to one model, and stays whole whatever happens."""

import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.base import DatasetError, Fwd2BotError
from encoders.fwd2bot.checkpoint import Checkpoint
from encoders.fwd2bot.encoder import Fwd2BotEncoder
from encoders.fwd2bot.model import AdapterSettings, Fwd2Bot
from encoders.fwd2bot.prompts import Prompts
from tests.tiny_models import LVLM, make_builder
from tests.training_runs import make_settings
from training.distributed import ALONE, Ranks
from training.lvlm import make_lvlm
from training.measure import make_step
from training.run_log import LOG_FILE, RunLog
from training.settings import BaseSettings
from training.states import STATE_FILE, load_state, put_back_model, save_model, save_state
from training.trainer import Trainer


def make_trainer(**changes: Any) -> Trainer:
    """A trainer of a model that is made without data."""
    settings = replace(make_settings(6), **changes)
    builder = make_builder()
    torch.manual_seed(0)
    model = Fwd2Bot(make_lvlm(builder.tokenizer, LVLM), settings.summary_tokens, settings.adapters)
    return Trainer(settings, model.requires_grad_(True), None, ALONE)


def test_a_state_comes_back_and_says_which_settings_changed(tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.step, trainer.best = 3, 12.5
    save_state(trainer, tmp_path / STATE_FILE)
    other = make_trainer(answer_weight=0.25)
    other.model.summary_tokens.data.zero_()
    assert load_state(other, tmp_path / STATE_FILE) == ["answer_weight"]
    assert (other.step, other.best) == (3, 12.5)
    assert torch.equal(other.model.summary_tokens, trainer.model.summary_tokens)


def test_a_state_that_holds_shared_weights_under_all_names_is_read(tmp_path: Path) -> None:
    trainer = make_trainer()
    save_state(trainer, tmp_path / STATE_FILE)
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    del state["best"]
    assert len(trainer.model.state_dict()) > len(state["model"])
    torch.save({**state, "model": trainer.model.state_dict()}, tmp_path / STATE_FILE)
    other = make_trainer()
    for parameter in other.model.parameters():
        parameter.data.zero_()
    load_state(other, tmp_path / STATE_FILE)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value), name


def test_a_base_that_has_moved_is_no_other_model(tmp_path: Path) -> None:
    before = make_trainer(lvlm=BaseSettings("somebody/a-model", "none"))
    save_state(before, tmp_path / STATE_FILE)
    after = make_trainer(lvlm=BaseSettings(str(tmp_path / "a-model"), "none"))
    assert load_state(after, tmp_path / STATE_FILE) == ["lvlm"]


@pytest.mark.parametrize(
    "change",
    [
        {"summary_tokens": 3},
        {"adapters": AdapterSettings(2, 4)},
        {"adapters": AdapterSettings(4, 32)},  # its weights would still fit
        {"prompts": Prompts(image="Say less.")},
        {"lvlm": BaseSettings("somebody/another", "none")},
    ],
    ids=["k", "rank", "alpha", "prompts", "base"],
)
def test_a_state_of_another_model_is_refused_by_its_settings(tmp_path: Path, change: dict[str, Any]) -> None:
    save_state(make_trainer(), tmp_path / STATE_FILE)
    with pytest.raises(DatasetError, match=f"another model .*differ: {next(iter(change))}"):
        load_state(make_trainer(**change), tmp_path / STATE_FILE)


def test_a_state_goes_on_with_the_weight_decay_of_the_settings(tmp_path: Path) -> None:
    trainer = make_trainer()
    save_state(trainer, tmp_path / STATE_FILE)
    other = make_trainer(optimizer=replace(trainer.settings.optimizer, weight_decay=0.75))
    assert load_state(other, tmp_path / STATE_FILE) == ["optimizer"]
    assert [group["weight_decay"] for group in other.optimizer.param_groups] == [0.75, 0.0]


@pytest.mark.parametrize("other", [None, [1, 2], {"step": 3}], ids=["bytes", "list", "part"])
def test_a_file_that_is_no_state_is_refused(tmp_path: Path, other: object) -> None:
    if other:
        torch.save(other, tmp_path / STATE_FILE)
    else:
        (tmp_path / STATE_FILE).write_bytes(b"not a state")
    with pytest.raises(DatasetError, match="is not the state of a run"):
        load_state(make_trainer(), tmp_path / STATE_FILE)


def test_a_full_disk_leaves_the_last_good_state_whole(tmp_path: Path) -> None:
    trainer, path = make_trainer(), tmp_path / STATE_FILE
    save_state(trainer, path)
    before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # like a disk with half the room
    try:
        with pytest.raises(Fwd2BotError, match=r"state\.pt could not be written .*make room"):
            save_state(trainer, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == [STATE_FILE]


def test_a_kill_between_two_moves_and_a_full_disk_leave_a_model(tmp_path: Path) -> None:
    trainer, builder, folder = make_trainer(), make_builder(), tmp_path / "model"
    checkpoint = Checkpoint(trainer.model, builder.processor, trainer.settings.prompts)
    save_model(folder, checkpoint, trainer.settings)
    settings = json.loads((folder / "training" / "settings.json").read_text())
    assert settings["seed"] == trainer.settings.seed
    folder.rename(tmp_path / "model.old")  # where a kill may have left it
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(Fwd2BotError, match=r"model could not be written .*make room"):
            save_model(folder, checkpoint, trainer.settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    Fwd2BotEncoder.load("whole", folder, "cpu")


@pytest.mark.parametrize("moved", [True, False], ids=["between", "after"])
def test_a_kill_at_the_two_moves_of_a_checkpoint_is_made_good(tmp_path: Path, moved: bool) -> None:
    (tmp_path / "best.old").mkdir()
    (tmp_path / "best.old" / "of").write_text("before")
    if not moved:
        (tmp_path / "best").mkdir()
        (tmp_path / "best" / "of").write_text("now")
    put_back_model(tmp_path / "best")
    assert (tmp_path / "best" / "of").read_text() == ("before" if moved else "now")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("line", [b"\0\0\0\0", b'{"step": 1, "\xff": 2}', b"[1]", b'{"stop": 1}', b"{"])
def test_a_line_that_no_run_wrote_is_dropped_from_its_log(tmp_path: Path, line: bytes) -> None:
    first, later = b'{"step": 1, "answer": 2.5}\n', b'{"step": 2}\n'
    (tmp_path / LOG_FILE).write_bytes(first + line + b"\n" + later + b'{"step": 1')
    RunLog(tmp_path, 1, 2)
    assert (tmp_path / LOG_FILE).read_bytes() == first


@pytest.mark.parametrize(("chunk_size", "ranks"), [(2, 1), (0, 2)])
def test_batch_statistics_allow_neither_chunks_nor_ranks(chunk_size: int, ranks: int) -> None:
    trainer = make_trainer()
    with pytest.raises(DatasetError, match=f"chunk_size = 0, which is {chunk_size}.*not {ranks}"):
        Trainer(
            replace(trainer.settings, chunk_size=chunk_size),
            trainer.model,
            None,
            Ranks(0, ranks, torch.device("cpu")),
        )


def test_a_step_keeps_to_its_rate_the_length_of_gradients_and_the_largest_scale() -> None:
    trainer = make_trainer(feature_weight=0.0, word_weight=0.0)
    settings = replace(trainer.settings.optimizer, weight_decay=0.0, gradient_norm=0.01)
    trainer.settings = replace(trainer.settings, optimizer=settings)
    trainer.optimizer.param_groups[0]["weight_decay"] = 0.0
    trainer.contrastive.log_scale.data.fill_(9.0)
    before = trainer.model.summary_tokens.detach().clone()
    report = trainer.train_step(make_step(trainer.model, rows=2))
    moved = (trainer.model.summary_tokens - before).abs().max().item()
    # AdamW's first step moves a weight by the learning rate, whatever the gradient.
    assert report.rate == settings.learning_rate / settings.warmup_steps == pytest.approx(moved, rel=0.01)
    lengths = [each.grad.norm() for each in trainer.model.parameters() if each.grad is not None]
    assert torch.stack(lengths).norm().item() == pytest.approx(settings.gradient_norm, rel=0.01)
    assert report.temperature == trainer.contrastive.temperature == pytest.approx(0.01)


def test_frozen_batch_statistics_stay_as_they_are() -> None:
    trainer = make_trainer()
    trainer.model.lvlm.model.vision_tower.requires_grad_(False)
    trainer._start_training()
    norms = [each for each in trainer.model.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    assert trainer.model.training
