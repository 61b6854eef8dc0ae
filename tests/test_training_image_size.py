"""Image sizes other than that of training: which models read them, which refuse, and what is saved."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.base import DatasetError
from encoders.fwd2bot.checkpoint import Checkpoint, save_checkpoint
from encoders.fwd2bot.encoder import Fwd2BotEncoder
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import AdapterSettings, Fwd2Bot
from encoders.fwd2bot.pretrained import load_lvlm
from encoders.fwd2bot.prompts import Prompts
from tests.conftest import FakeEncoder
from tests.tiny_models import make_pictures
from tests.training_runs import make_base, make_settings
from training.guides import GuideTable
from training.image_size import set_image_size
from training.initial_model import InitialModel, make_initial_model
from training.settings import CheckpointSettings, TrainingSettings
from training.sources.open import open_sources
from training.teach import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.usefixtures("few_scenes"),
]


def go_on(run: Path, data: Path, side: int) -> InitialModel:
    settings = make_settings(3)
    settings = replace(settings, lvlm=CheckpointSettings(str(run / "model"), side), word_weight=0.0)
    settings = replace(settings, batches=settings.batches[:1])
    return make_initial_model(settings, open_sources(settings.sources, data), torch.device("cpu"))


def count_image_tokens(builder: InputBuilder) -> int:
    ids = builder.images(make_pictures()[:1])["input_ids"]
    return int((ids == builder.tokenizer.convert_tokens_to_ids("<image>")).sum())


@pytest.mark.parametrize(("side", "tokens"), [(0, 4), (16, 4), (24, 9), (40, 25)])
def test_a_convolutional_tower_goes_on_at_any_size(run: Path, data: Path, side: int, tokens: int) -> None:
    model, builder, _ = go_on(run, data, side)
    assert count_image_tokens(builder) == tokens
    assert model.lvlm.config.image_seq_length == tokens
    assert model.compress(builder.images(make_pictures())).isfinite().all()


def test_a_checkpoint_keeps_its_new_size(run: Path, data: Path, tmp_path: Path) -> None:
    model, builder, _ = go_on(run, data, 24)
    save_checkpoint(tmp_path / "larger", Checkpoint(model.eval(), builder.processor, builder.prompts))
    encoder = Fwd2BotEncoder.load("larger", tmp_path / "larger", "cpu")
    assert encoder.image_size == 24
    with torch.no_grad():
        wanted = model.compress(builder.images(make_pictures())).numpy()
    found = encoder.encode_images(make_pictures()).summaries
    assert found is not None
    np.testing.assert_allclose(np.asarray(found, np.float32), wanted, atol=2e-2)


@pytest.mark.parametrize("side", [20, 4, -8])
def test_a_size_that_leaves_a_part_of_a_stride_is_refused(run: Path, data: Path, side: int) -> None:
    with pytest.raises(DatasetError, match=f"cannot read pictures of {side} x {side} pixels"):
        go_on(run, data, side)


def test_a_tower_of_one_size_refuses_another(tmp_path: Path) -> None:
    make_base(tmp_path)
    lvlm, processor = load_lvlm(str(tmp_path), "cpu", torch.float32, "none")
    model = Fwd2Bot(lvlm, 2, AdapterSettings(4, 4))
    with pytest.raises(DatasetError, match="cannot read pictures of 24 x 24 pixels"):
        set_image_size(model, InputBuilder(processor, Prompts(), 2), 24)


def teach(
    run: Path, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, teacher: str, *more: str
) -> tuple[int, TrainingSettings]:
    settings = make_settings(3)
    monkeypatch.setattr("training.teach.read_settings", lambda path, overrides: settings)
    command = ["any.toml", "--data", str(data), "--teachers", teacher, "--out", str(out)]
    return main([*command, *more]), settings


@pytest.mark.parametrize("sides", [[24], [16, 24]])
def test_teachers_look_at_pictures_and_mirror_images_at_every_size_given(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sides: list[int]
) -> None:
    size = ("--image-size", *map(str, sides))
    status, settings = teach(run, data, tmp_path, monkeypatch, str(run / "model"), *size)
    assert status == 0
    photos = open_sources(settings.sources, data)["photos"]
    picture = photos.load_picture(5, 0)  # type: ignore[union-attr]
    looks = []
    for view in (picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        rows = torch.cat([embed(*go_on(run, data, side)[:2], view) for side in sides])
        looks.append(torch.nn.functional.normalize(rows.mean(0), dim=0))
    wanted = torch.nn.functional.normalize(looks[0] + looks[1], dim=0)
    found = GuideTable(tmp_path, {"photos": 0}).find_pictures([5])[0]
    assert float(wanted @ found) > 0.999


@torch.no_grad()
def embed(model: Fwd2Bot, builder: InputBuilder, picture: Image.Image) -> torch.Tensor:
    summaries: torch.Tensor = model.eval().compress(builder.images([picture]))
    return torch.nn.functional.normalize(summaries.mean(1), dim=1)


def test_an_encoder_of_another_make_cannot_look_closer(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.teach.load_encoder", lambda name: FakeEncoder(name))
    assert teach(run, data, tmp_path / "out", monkeypatch, "other", "--image-size", "24")[0] == 1
    assert "another --image-size" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_size_that_a_teacher_cannot_read_is_refused_before_anything_is_written(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ("--image-size", "24", "20")
    assert teach(run, data, tmp_path / "out", monkeypatch, str(run / "model"), *size)[0] == 1
    assert "cannot read pictures of 20 x 20 pixels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
