"""Learning from teachers: the loss against its definition, what teachers write, and a run that reads it."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import normalize

from encoders.base import DatasetError
from encoders.fwd2bot.checkpoint import load_checkpoint
from tests.conftest import FakeEncoder
from tests.training_data import (
    AUGMENTATION,
    GROUPS,
    PHOTOS,
    encode_picture,
    make_plain_builder,
    write_lines,
    write_photos,
)
from tests.training_data import make_settings as make_sources
from tests.training_runs import make_settings, read_log, write_tested_colours
from training.data import StepDataset
from training.data_settings import BatchSettings, ConversationSettings, UnlabelledSettings
from training.guides import PICTURES_FILE, TEXTS_FILE, GuideTable
from training.initial_model import make_initial_model
from training.losses import compare_affinities
from training.settings import CheckpointSettings, DistillationSettings, TrainingSettings
from training.sources.open import Sources, open_sources
from training.teach import main, teach
from training.train import train
from training.two_tower import train_two_towers

# Python 3.12 warns of forks in threaded processes; the loader's worker is forked before the model computes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.usefixtures("few_scenes"),
]


def unit_rows(count: int, seed: int, dim: int = 8) -> Tensor:
    return normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def spell_out(rows: Tensor, guides: Tensor, pictured: list[bool], temperature: float) -> float:
    """TinyCLIP's affinity loss, row by row, averaged over the four pairs of kinds (picture or text)."""

    def softmax(vectors: Tensor, row: int, others: list[int]) -> list[float]:
        weights = [math.exp(float(vectors[row] @ vectors[other]) / temperature) for other in others]
        return [weight / sum(weights) for weight in weights]

    means = []
    for mine in (True, False):
        for theirs in (True, False):
            entropies = []
            for row in (row for row, kind in enumerate(pictured) if kind is mine):
                others = [place for place, kind in enumerate(pictured) if kind is theirs and place != row]
                wanted, found = softmax(guides, row, others), softmax(rows, row, others)
                entropies.append(sum(p * math.log(p / q) for p, q in zip(wanted, found, strict=True)))
            means.append(sum(entropies) / len(entropies))
    return sum(means) / len(means)


def test_affinities_are_compared_picture_by_picture_and_text_by_text() -> None:
    rows, guides = unit_rows(7, 1), unit_rows(7, 2, dim=5)
    pictured = [True, True, True, False, True, False, False]
    loss = compare_affinities(rows, guides, torch.tensor(pictured), 0.3)
    assert loss.item() == pytest.approx(spell_out(rows, guides, pictured, 0.3), abs=1e-5)


def test_who_is_as_alike_as_the_teachers_find_has_nothing_to_learn() -> None:
    rows, turn = unit_rows(6, 1), torch.linalg.qr(torch.randn(8, 8)).Q
    turned = (rows @ turn).requires_grad_()
    loss = compare_affinities(turned, rows, torch.arange(6) < 3, 0.05)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert turned.grad is not None and turned.grad.abs().max() < 1e-3


def test_rows_that_no_teacher_saw_take_no_part() -> None:
    rows, guides, pictured = unit_rows(6, 1), unit_rows(6, 2), torch.arange(6) < 3
    unseen = torch.tensor([True, False, False, False, False, True])
    loss = compare_affinities(rows, guides.masked_fill(unseen[:, None], 0), pictured, 0.3)
    assert loss == compare_affinities(rows[~unseen], guides[~unseen], pictured[~unseen], 0.3)
    none = compare_affinities(rows.requires_grad_(), torch.zeros(6, 8), pictured, 0.3)
    assert none == 0 and none.requires_grad


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos, groups, and two pictures without captions, one of them broken."""
    write_photos(tmp_path)
    (tmp_path / "more" / "deep").mkdir(parents=True)
    Image.new("RGB", (12, 12), "red").save(tmp_path / "more" / "deep" / "b.JPG")
    (tmp_path / "more" / "a.png").write_bytes(b"no picture")
    (tmp_path / "more" / "notes.txt").write_text("not one either")
    return tmp_path


def open_all(folder: Path) -> Sources:
    unlabelled = UnlabelledSettings("unlabelled", "more")
    return open_sources({**make_sources(), "unlabelled": unlabelled}, folder)


def open_guides(out: Path) -> GuideTable:
    return GuideTable(out, {"photos": 0, "unlabelled": 100})


def test_teachers_stand_side_by_side_and_see_mirror_images_too(folder: Path) -> None:
    teachers = [FakeEncoder("one"), FakeEncoder("two")]
    sources = open_all(folder)
    teach(teachers, sources, folder / "out")
    guides = open_guides(folder / "out")
    picture = sources["photos"].load_picture(3, 0)  # type: ignore[union-attr]
    plain, mirrored = (
        teachers[0].encode_images([each]).vectors for each in (picture, ImageOps.mirror(picture))
    )
    once = (plain + mirrored) / np.linalg.norm(plain + mirrored)
    wanted = np.concatenate([once, once], axis=1) / math.sqrt(2)
    np.testing.assert_allclose(guides.find_pictures([3]).numpy(), wanted, atol=1e-3)
    text = teachers[0].encode_texts(["cat 2 b"])
    found = guides.find_texts(["cat 2 b"]).numpy()
    np.testing.assert_allclose(found, np.concatenate([text, text], axis=1) / math.sqrt(2), atol=1e-3)


def test_every_picture_and_caption_is_written_down_and_nothing_else_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teach([FakeEncoder()], open_all(folder), folder / "out")
    guides = open_guides(folder / "out")
    assert guides.find_pictures(range(PHOTOS)).any(dim=1).all()
    assert guides.find_pictures([100, 101, PHOTOS, 9]).any(dim=1).tolist() == [False, True, False, False]
    said = [f"cat {number} {word}" for number in range(GROUPS) for word in "abc"] + ["dog 3 one"]
    assert guides.find_texts(said).any(dim=1).all()
    assert not guides.find_texts(["dog 3 three"]).any()
    assert capsys.readouterr().err.count("\n") == 1


def test_a_conversation_without_an_image_is_no_picture_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(encode_picture("red"))
    talk = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "dog"}]
    records = [{"conversations": talk}, {"image": "a.png", "conversations": talk}]
    write_lines(tmp_path / "talk.jsonl", [*records, {"image": "b.png", "conversations": talk}])
    settings = ConversationSettings("conversations", "talk.jsonl", ".", True, True)
    teach([FakeEncoder()], open_sources({"photos": settings}, tmp_path), tmp_path / "out")
    (told,) = capsys.readouterr().err.splitlines()
    assert told == "source photos passes over record 2 (id None): there is no such picture"
    assert open_guides(tmp_path / "out").find_pictures(range(3)).any(dim=1).tolist() == [False, True, False]


def test_each_row_of_a_step_is_beside_what_teachers_made_of_it(folder: Path) -> None:
    sources = open_all(folder)
    teach([FakeEncoder()], sources, folder / "out")
    counts = {"photos": 3, "unlabelled": 2, "scenes": 2, "groups": 2}
    dataset = StepDataset(
        sources,
        make_plain_builder(),
        [BatchSettings(1, counts)],
        AUGMENTATION,
        5,
        teachers=folder / "out",
    )
    step = dataset[0]
    assert step.guides is not None and dataset.guides is not None
    assert step.guides.sources.any(dim=1).tolist() == [True] * 5 + [False] * 2 + [True] * 2
    assert torch.equal(step.guides.sources[:5], dataset.guides.find_pictures(step.source_ids[:5].tolist()))
    assert step.paired.tolist() == [True] * 3 + [False] * 2 + [True] * 4
    said = dataset.builder.tokenizer.batch_decode(step.targets[0]["input_ids"], skip_special_tokens=True)
    for text, guide in zip(said, step.guides.targets, strict=True):
        plain = text.strip().removesuffix("summarize the text.").strip()
        known = dataset.guides.find_texts([plain])[0]
        assert torch.equal(guide, known), plain
    assert step.guides.targets.any(dim=1).sum() == 5  # photos and groups have guides, scenes do not


def test_pictures_without_captions_teach_nothing_without_teachers(folder: Path) -> None:
    with pytest.raises(DatasetError, match="unlabelled would train nothing"):
        StepDataset(
            open_all(folder), make_plain_builder(), [BatchSettings(1, {"unlabelled": 2})], AUGMENTATION, 5
        )


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no pictures"):
        open_sources({"more": UnlabelledSettings("unlabelled", "none")}, tmp_path)


@pytest.mark.parametrize("name", [PICTURES_FILE, TEXTS_FILE])
def test_what_no_teacher_wrote_is_refused(folder: Path, name: str) -> None:
    teach([FakeEncoder()], open_all(folder), folder / "out")
    (folder / "out" / name).write_bytes(b"PAR1 not at all")
    with pytest.raises(DatasetError, match=rf"{name} cannot be read .*training\.teach"):
        open_guides(folder / "out")
    (folder / "out" / name).unlink()
    with pytest.raises(DatasetError, match=rf"{name} cannot be read .*training\.teach"):
        open_guides(folder / "out")


def test_nobody_teaches_nothing(folder: Path) -> None:
    with pytest.raises(DatasetError, match="Nobody teaches"):
        teach([], open_all(folder), folder / "out")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures of four colours, four of them both val and test, and two more without captions."""
    folder = write_tested_colours(tmp_path_factory.mktemp("data"))
    (folder / "more").mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (24, 24), colour).save(folder / "more" / f"{colour}.png")
    return folder


def go_on_from(run: Path, settings: TrainingSettings, steps: int) -> TrainingSettings:
    """Settings that continue a run from its model with teachers alone, first on unlabelled pictures alone."""
    counts = {"photos": 4, "unlabelled": 2, "families": 4, "groups": 2}
    return replace(
        settings,
        lvlm=CheckpointSettings(str(run / "model")),
        contrastive_weight=0.0,
        answer_weight=0.0,
        feature_weight=0.0,
        word_weight=0.0,
        validate_every=100,
        distillation=DistillationSettings(str(run / "teachers"), 1.0, 0.1),
        sources={**settings.sources, "unlabelled": UnlabelledSettings("unlabelled", "more")},
        batches=(BatchSettings(1, {"unlabelled": 2}), BatchSettings(steps - 1, counts)),
    )


def test_a_model_goes_on_from_its_checkpoint_with_what_teachers_say(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "first"
    train(make_settings(4), data, run)
    train_two_towers(make_settings(4), data, tmp_path / "towers")
    settings = go_on_from(run, make_settings(4), 30)
    monkeypatch.setattr("training.teach.read_settings", lambda path, overrides: settings)
    command = [
        "any.toml",
        "--data",
        str(data),
        "--teachers",
        str(run / "model"),
        "--out",
        str(run / "teachers"),
    ]
    assert main([*command, "--two-towers", str(tmp_path / "towers")]) == 0
    start = make_initial_model(settings, open_sources(settings.sources, data), torch.device("cpu"))
    written = load_checkpoint(run / "model", "cpu").model.state_dict()
    assert all(torch.equal(value, written[name]) for name, value in start.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in start.model.parameters())
    train(settings, data, tmp_path / "second")
    losses = [line["affinity"] for line in read_log(tmp_path / "second") if "rate" in line]
    assert len(losses) == 30 and np.mean(losses[-5:]) < 0.7 * np.mean(losses[1:6])
    train_two_towers(replace(settings, lvlm=make_settings(4).lvlm), data, tmp_path / "taught")
    losses = [line["affinity"] for line in read_log(tmp_path / "taught") if "rate" in line]
    assert len(losses) == 30 and np.mean(losses[-5:]) < 0.7 * np.mean(losses[1:6])


def test_a_checkpoint_of_another_make_is_refused(data: Path, tmp_path: Path) -> None:
    train(make_settings(2), data, tmp_path)
    settings = replace(go_on_from(tmp_path, make_settings(4), 2), summary_tokens=3)
    sources = open_sources(settings.sources, data)
    with pytest.raises(DatasetError, match="has 2 summary tokens"):
        make_initial_model(settings, sources, torch.device("cpu"))
    with pytest.raises(DatasetError, match="sees already"):
        make_initial_model(replace(settings, word_weight=1.0), sources, torch.device("cpu"))


def test_a_run_of_something_else_is_no_pair_of_towers(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(make_settings(2), data, tmp_path / "run")
    config = Path(__file__).parent.parent / "training" / "configs" / "tiny-distilled.toml"
    command = [
        str(config),
        "--data",
        str(data),
        "--two-towers",
        str(tmp_path / "run"),
        "--out",
        str(tmp_path),
    ]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "is not a run of training.two_tower" in error
