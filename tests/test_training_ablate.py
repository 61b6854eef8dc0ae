"""The ablation command runs what is missing, resumes, and reports what it found."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders.base import DatasetError
from encoders.fwd2bot.checkpoint import Checkpoint, save_checkpoint
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import AdapterSettings, Fwd2Bot
from tests.tiny_models import SUMMARIES, make_builder, make_fastvlm
from tests.training_runs import write_colours
from training.ablate import Ablation, list_trials, main, run_ablations
from training.ablations import stock as stock_module
from training.ablations.batches import deal_batch
from training.ablations.measures import Measure, Measures
from training.ablations.report import (
    combine,
    find_advantage,
    find_spread,
    is_close,
    judge,
    render_report,
    write_report,
)
from training.ablations.settings import AblationSettings
from training.ablations.trial import Trial, read_trial, write_trial
from training.ablations.variants import JOINT, VARIANTS, Variant
from training.deal import Deal
from training.losses import ContrastiveLoss
from training.sources.karpathy import KarpathySource
from training.typed_toml import read_toml

CONFIG = Path(__file__).parent.parent / "training" / "configs" / "ablations.toml"
IMAGE_TOKENS, RANK = 4, 2


@pytest.fixture(scope="module")
def builder() -> InputBuilder:
    return make_builder()


def make_trial(name: str, recall: float, nats: float, error: float = 0.5, seed: int = 1) -> Trial:
    """Four photos whose values spread so that recall has this standard error, cross entropy a tenth of it."""
    offsets = [3**0.5 * error * sign for sign in (1, -1, 1, -1)]
    figures = {
        "recall@10": [recall + offset for offset in offsets],
        "cross_entropy": [nats + offset / 10 for offset in offsets[::-1]],
    }
    return Trial(name, seed, 10, 20.0, [1.0], Measures(figures, 100))


def test_a_finding_is_judged_by_two_standard_errors_of_the_difference() -> None:
    trials = {JOINT: [make_trial(JOINT, 30, 3.0)], "k4": [make_trial("k4", 28, 2.7, error=0.1)]}
    assert combine(trials, JOINT, "recall@10") == pytest.approx((30, 0.5))
    found = find_advantage(trials, JOINT, "k4", "recall@10")
    assert found is not None and found == pytest.approx((2, 0.5 - 0.1))  # the same photos are easy for both
    assert judge("more is better", found) == "agrees" and judge("", found) == "not published"
    nats = find_advantage(trials, JOINT, "k4", "cross_entropy")
    assert nats is not None and judge("more is better", nats) == "disagrees"
    assert judge("more is better", Measure(1.0, 0.6)) == "undecided"
    assert find_advantage(trials, JOINT, "k2", "recall@10") is None
    assert not is_close(trials, "k4")
    assert is_close({**trials, "k2": [make_trial("k2", 29.5, 9.0, error=0.1)]}, "k2")


def test_variants_that_are_equal_on_every_photo_decide_nothing() -> None:
    trials = {name: [make_trial(name, 0.0, 3.0, error=0.0)] for name in (JOINT, "k4")}
    found = find_advantage(trials, JOINT, "k4", "recall@10")
    assert found is not None and found == (0.0, 0.0)
    assert judge("more is better", found) == "undecided"
    assert is_close(trials, "k4")


def test_variants_are_compared_with_equal_seeds_and_their_pooled_spread() -> None:
    trials = {JOINT: [make_trial(JOINT, value, 3.0, seed=seed) for seed, value in enumerate((29, 32, 32))]}
    trials["k4"] = [make_trial("k4", 30, 3.0, error=0.0)]
    assert find_spread(trials, "recall@10") == pytest.approx(3)
    assert combine(trials, JOINT, "recall@10") == pytest.approx((31, (0.5**2 + 3 / 3) ** 0.5))
    found = find_advantage(trials, JOINT, "k4", "recall@10")
    assert found is not None and found == pytest.approx((2, (0.5**2 + 3 + 3) ** 0.5))  # both have seed 1 only
    trials["k2"] = [make_trial("k2", value, 3.0, seed=seed) for seed, value in enumerate((20, 20))]
    assert find_spread(trials, "recall@10") == pytest.approx(6 / 3)


def test_a_second_report_takes_the_place_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "experiments.md"
    path.write_text("# Experiments\n\nbefore\n")
    for recall in (30.0, 40.0):
        trials = {name: [make_trial(name, recall, 3.0)] for name in (JOINT, "k4", "uncompressed")}
        write_report(path, render_report(trials, "## Heading"))
        path.write_text(path.read_text() + "after\n")
    text = path.read_text()
    assert text.startswith("# Experiments\n\nbefore\n\n<!--") and text.count("## Heading") == 1
    assert "Nats a token over those of `uncompressed`: `k4` 1.000, `joint` 1.000." in text
    assert "40.0 ± 0.5" in text and "30.0" not in text and text.count("after\n") == 2
    path.write_text("<!-- ablations: written by training.ablate -->")
    with pytest.raises(DatasetError, match="without"):
        write_report(path, "new")


def test_a_trial_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "joint-1.json"
    write_trial(path, make_trial(JOINT, 30, 3.0))
    assert read_trial(path) == make_trial(JOINT, 30, 3.0)
    for damage in ("{", "[]", '{"measures": {}}'):
        path.write_text(damage)
        with pytest.raises(DatasetError, match="is not a trial"):
            read_trial(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures of four colours, four of them for testing, and a checkpoint to start from."""
    folder = write_colours(tmp_path_factory.mktemp("data"))
    builder = make_builder()
    torch.manual_seed(0)
    model = Fwd2Bot(make_fastvlm(builder), SUMMARIES, AdapterSettings(RANK, RANK))
    save_checkpoint(folder / "checkpoint", Checkpoint(model, builder.processor, builder.prompts))
    return folder


def make_settings(data: Path) -> AblationSettings:
    settings = read_toml(CONFIG, AblationSettings)
    optimizer = replace(settings.variant.optimizer, warmup_steps=1, cooldown_steps=2)
    phase = replace(settings.variant, steps=4, photos=6, optimizer=optimizer)
    return replace(
        settings,
        checkpoint=str(data / "checkpoint"),
        test_split="val",
        copies=2,
        rank=RANK,
        summary_tokens=SUMMARIES,
        longest_caption=4,
        stock=phase,
        variant=phase,
    )


def test_every_variant_is_dealt_the_same_rows_and_captions(data: Path, builder: InputBuilder) -> None:
    deal = Deal("photos", KarpathySource(make_settings(data).photos, data), 1)
    few, many = (deal_batch(deal, replace(builder, summary_count=count), 3, 6) for count in (1, 9))
    assert torch.equal(few.rows, many.rows) and torch.equal(few.target_rows, many.target_rows)
    assert all(map(torch.equal, *([part["input_ids"] for part in each.targets] for each in (few, many))))
    said = ([part.labels[part.labels >= 0] for part in each.answers] for each in (few, many))
    assert all(map(torch.equal, *said))
    assert sorted(torch.cat([deal_batch(deal, builder, step, 6).rows for step in range(2)]).tolist()) == list(
        range(12)
    )


def test_trials_are_run_once_and_come_out_the_same_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, names = make_settings(data), list(VARIANTS)
    run_ablations(Ablation(settings, data, tmp_path / "one"), names, seeds=1)
    trials = list_trials(tmp_path / "one")
    assert list(trials) == names
    assert all(len(each) == 1 and len(each[0].losses) == 4 for each in trials.values())
    assert "recall@10" not in trials["uncompressed"][0].measures.figures
    for name in (JOINT, "answer_only"):
        (tmp_path / "one" / "trials" / f"{name}-1.json").unlink()
    run_ablations(Ablation(settings, data, tmp_path / "one"), names, seeds=1)
    for name in (JOINT, "answer_only"):
        again = list_trials(tmp_path / "one")[name][0]
        assert again.losses == trials[name][0].losses and again.measures == trials[name][0].measures
    monkeypatch.setattr("training.ablate.run_trial", None)
    run_ablations(Ablation(settings, data, tmp_path / "one"), names, seeds=1)


def test_embeddings_are_compared_in_float32(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, compare = list[bool](), ContrastiveLoss.forward

    def note(*rows: Any) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return compare(*rows)

    monkeypatch.setattr("encoders.precision._has_bfloat16", lambda: True)
    monkeypatch.setattr(ContrastiveLoss, "forward", note)
    run_ablations(Ablation(make_settings(data), data, tmp_path), [JOINT], seeds=1)
    assert seen and not any(seen)


def test_more_seeds_are_run_of_what_is_near_to_joint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recalls = {JOINT: 30.0, "k4": 29.5, "k2": 10.0}

    def pretend(settings: AblationSettings, variant: Variant, seed: int, *_: object) -> Trial:
        error = 1.0 if variant.name == "k4" else 0.5  # so that it differs from the joint one on some photos
        return make_trial(variant.name, recalls[variant.name], recalls[variant.name], error, seed)

    monkeypatch.setattr("training.ablate.run_trial", pretend)
    monkeypatch.setattr("training.ablate.prepare_stock", lambda *_: None)
    run_ablations(Ablation(make_settings(data), data, tmp_path), list(recalls), seeds=3)
    assert {name: len(each) for name, each in list_trials(tmp_path).items()} == {JOINT: 3, "k2": 1, "k4": 3}


def test_a_captioner_learns(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, losses = make_settings(data), list[float]()
    phase = replace(settings.stock, steps=25)
    average_answers = stock_module.average_answers

    def record(*arguments: object) -> Tensor:
        loss = average_answers(*arguments)  # type: ignore[arg-type]
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(stock_module, "average_answers", record)
    optimizer = replace(phase.optimizer, learning_rate=5e-3)
    settings = replace(settings, stock=replace(phase, optimizer=optimizer), copies=3)
    stock = Ablation(settings, data, tmp_path)._find_stock()
    assert losses[-1] < losses[0] - 1
    assert stock.train.shape == (3, 12, IMAGE_TOKENS, 32) and stock.test.shape == (4, IMAGE_TOKENS, 32)
    assert not torch.equal(stock.train[0], stock.train[1])


def test_features_of_other_photos_or_of_none_are_refused(data: Path, tmp_path: Path) -> None:
    ablation = Ablation(make_settings(data), data, tmp_path)
    ablation._find_stock()
    fewer = Ablation(make_settings(data), data, tmp_path)
    fewer.test = fewer.test[:3]
    with pytest.raises(DatasetError, match="12 training and 4 test photos, and the data have 12 and 3"):
        fewer._find_stock()
    (tmp_path / "features.safetensors").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"features\.safetensors cannot be read .*made again"):
        Ablation(make_settings(data), data, tmp_path)._find_stock()


def set_all(settings: AblationSettings) -> list[str]:
    """The `--set` options for these settings, with two steps per phase."""
    names = ("checkpoint", "test_split", "copies", "rank", "summary_tokens", "longest_caption")
    words = [f"{name}={getattr(settings, name)}" for name in names]
    for phase in ("stock", "variant"):
        words += [f"{phase}.steps=2", f"{phase}.photos=6"]
    return [part for word in words for part in ("--set", word)]


def test_the_command_runs_reports_and_refuses(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(CONFIG), "--data", str(data), "--run", str(tmp_path / "run"), *set_all(make_settings(data))]
    report = tmp_path / "report.md"

    def run(*more: str) -> int:
        return main([*words, *more])

    assert run("--only", JOINT, "k1", "--seeds", "1", "--report", str(report)) == 0
    printed = capsys.readouterr().out
    assert "| `k1` | 1 |" in printed and printed.strip() == report.read_text().strip()
    assert json.loads((tmp_path / "run" / "trials" / "k1-1.json").read_text())["seed"] == 1
    for wrong, sentence in (
        (["--only", "k3"], r"no variant k3: there are joint,"),
        (["--set", "seed=2"], r"another config \(these settings differ: seed\)"),
    ):
        assert run(*wrong) == 1
        assert_one_line(capsys.readouterr().err, sentence)


def assert_one_line(text: str, sentence: str) -> None:
    assert text.count("\n") == 1
    with pytest.raises(DatasetError, match=sentence):
        raise DatasetError(text)
