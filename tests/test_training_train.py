"""A whole training run, minutes made seconds: it learns, it can be killed, and what it leaves can be used."""

import json
import multiprocessing
import os
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from encoders.base import DatasetError, Fwd2BotError
from encoders.fwd2bot.encoder import Fwd2BotEncoder
from encoders.fwd2bot.model import AdapterSettings, Fwd2Bot
from tests.tiny_models import LVLM, make_builder
from training import states
from training.data_settings import KarpathySettings
from training.distributed import Ranks
from training.lvlm import make_lvlm
from training.settings import BaseSettings, BatchSettings, TrainingSettings, read_settings
from training.states import STATE_FILE, load_state, save_state
from training.train import main, train
from training.trainer import Trainer

CONFIG = Path(__file__).parent.parent / "training" / "configs" / "tiny.toml"
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (250, 250, 250)}
ALONE = Ranks(0, 1, torch.device("cpu"))

# Python 3.12 warns of every fork; the loader's worker is forked before the model computes.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer need not know many words here."""
    monkeypatch.setattr("training.initial_model._TOKENIZER_SCENES", 60)


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


def make_trainer(**changes: Any) -> Trainer:
    """A trainer of a model that no data made."""
    settings = replace(make_settings(6), **changes)
    builder = make_builder()
    torch.manual_seed(0)
    model = Fwd2Bot(make_lvlm(builder.tokenizer, LVLM), settings.summary_tokens, settings.adapters)
    return Trainer(settings, model.requires_grad_(True), None, ALONE)


def read_log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def train_until_killed(settings: TrainingSettings, data: Path, run: Path, step: int) -> None:
    """Die, with no chance to clean up, after a step was logged and before its state is written."""
    torch.set_num_threads(1)
    whole = states.save_state

    def die_or_save(trainer: Trainer, path: Path) -> None:
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(trainer, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.train.save_state", die_or_save)
        train(settings, data, run)


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
    train(settings, data, tmp_path / "killed")

    assert read_log(tmp_path / "killed") == read_log(tmp_path / "whole")
    assert [line["step"] for line in read_log(tmp_path / "whole")] == [1, 2, 3, 3, 4, 5, 6, 6]
    whole, resumed = (
        torch.load(tmp_path / run / STATE_FILE, weights_only=True) for run in ("whole", "killed")
    )
    assert whole["step"] == resumed["step"] == 6 and whole["best"] == resumed["best"]
    for name, value in whole["model"].items():
        assert torch.equal(resumed["model"][name], value), name


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
    builder, base = make_builder(), tmp_path / "base"
    sizes = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=16, patch_size=8, hidden_size=24, **sizes)
    text = LlamaConfig(vocab_size=len(builder.tokenizer), hidden_size=32, **sizes)
    image_token = builder.tokenizer.convert_tokens_to_ids("<image>")
    lvlm = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token, image_seq_length=4)
    )
    lvlm.save_pretrained(base)
    builder.processor.vision_feature_select_strategy = "default"
    builder.processor.num_additional_image_tokens = 1
    builder.processor.save_pretrained(base)
    settings = make_settings(4)
    photos = settings.sources["photos"]
    assert isinstance(photos, KarpathySettings)
    settings = replace(
        settings,
        lvlm=BaseSettings(str(base), "none"),
        sources={"photos": replace(photos, in_memory=False)},
        batches=(BatchSettings(4, {"photos": 5}),),
        augmentation=None,
        feature_weight=0.0,
        word_weight=0.0,
        contrastive_loss="sigmoid",
        chunk_size=2,
        gradient_checkpointing=True,
    )
    train(settings, data, tmp_path / "run")
    assert set(read_log(tmp_path / "run")[0]) >= {"contrastive", "answer", "temperature", "tokens"}
    written = torch.load(tmp_path / "run" / STATE_FILE, weights_only=True)["model"]
    trained = [name for name in written if "lora" in name or name == "summary_tokens"]
    assert trained and not [name for name in written if "lm_head" in name or "vision_tower.encoder" in name]
    assert not (tmp_path / "run" / "model" / "base").exists()
    encoder = Fwd2BotEncoder.load("new", tmp_path / "run" / "model", "cpu")
    kept = encoder.model.lvlm.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in lvlm.state_dict().items())
    assert any(value.abs().sum() > 0 for name, value in encoder.model.named_parameters() if "lora_B" in name)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "training.losses.ContrastiveLoss.forward", lambda *_: torch.tensor(float("nan"), requires_grad=True)
    )
    with pytest.raises(Fwd2BotError, match=r"nan at step 0, .*20000000"):
        train(make_settings(3), data, tmp_path)
    assert not (tmp_path / STATE_FILE).exists()


def test_missing_data_is_one_line_and_exit_code_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(CONFIG), "--data", str(tmp_path), "--run", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "dataset_flickr8k.json" in error


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


@pytest.mark.parametrize(
    "change", [{"summary_tokens": 3}, {"adapters": AdapterSettings(2, 4)}], ids=["k", "rank"]
)
def test_a_state_of_another_model_is_refused_by_its_settings(tmp_path: Path, change: dict[str, Any]) -> None:
    save_state(make_trainer(), tmp_path / STATE_FILE)
    with pytest.raises(DatasetError, match=f"another model .*differ: {next(iter(change))}"):
        load_state(make_trainer(**change), tmp_path / STATE_FILE)


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_bytes(b"not a state")
    with pytest.raises(DatasetError, match="is no state of a run"):
        load_state(make_trainer(), tmp_path / STATE_FILE)


def test_a_full_disk_leaves_the_last_good_state_whole(tmp_path: Path) -> None:
    trainer, path = make_trainer(), tmp_path / STATE_FILE
    save_state(trainer, path)
    before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # as a disk with half the room
    try:
        with pytest.raises(Fwd2BotError, match=r"state\.pt could not be written .*make room"):
            save_state(trainer, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == [STATE_FILE]


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


def test_frozen_batch_statistics_stay_as_they_are() -> None:
    trainer = make_trainer()
    trainer.model.lvlm.model.vision_tower.requires_grad_(False)
    trainer._start_training()
    norms = [each for each in trainer.model.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    assert trainer.model.training
