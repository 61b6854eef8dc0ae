"""The shipped recipes, and settings that the command line overrides."""

from dataclasses import replace
from pathlib import Path

import pytest

from encoders.base import DatasetError
from training.settings import BaseSettings, end_run_at, read_settings

_FOLDER = Path(__file__).parent.parent / "training" / "configs"
CONFIGS = sorted(set(_FOLDER.glob("*.toml")) - {_FOLDER / "ablations.toml"})  # it describes many runs
TINY = next(path for path in CONFIGS if path.name == "tiny.toml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_can_be_read_and_adds_up(path: Path) -> None:
    settings = read_settings(path)
    optimizer = settings.optimizer
    assert optimizer.warmup_steps + optimizer.cooldown_steps <= settings.total_steps
    assert {name for batch in settings.batches for name in batch.counts} == set(settings.sources)
    if isinstance(settings.lvlm, BaseSettings):  # a pretrained base needs only the paper's losses
        assert settings.feature_weight == settings.word_weight == 0
        assert settings.augmentation is None
        assert f"k{settings.summary_tokens}" in path.stem


def test_the_command_line_sets_what_the_file_says_otherwise() -> None:
    overrides = [
        "seed=7",
        "optimizer.learning_rate=3e-4",
        "contrastive_loss=sigmoid",
        'lvlm={base = "some/where", quantize = "4bit"}',
        "sources.photos.splits=['train']",
    ]
    settings = read_settings(TINY, overrides)
    assert (settings.seed, settings.optimizer.learning_rate) == (7, 3e-4)
    assert settings.contrastive_loss == "sigmoid"
    assert settings.lvlm == BaseSettings("some/where", "4bit")
    assert settings.sources["photos"].splits == ("train",)  # type: ignore[union-attr]
    assert read_settings(TINY).seed == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sead=1", "sead"),
        ("seed", "sets nothing"),
        ("seed.of.all=1", "seed is a value"),
        ("seed=one", "seed must be int"),
        ("contrastive_loss=triplet", "must be one of infonce, sigmoid, and is 'triplet'"),
        ("optimizer=3", "optimizer must hold exactly .*learning_rate.*, and holds 3"),
        ("sead=1", "must hold .*workers, may hold augmentation, distillation, longest_answer, and holds"),
        ("adapters=3", "adapters must hold nothing, may hold alpha, mode, rank, and holds 3"),
        ("sources.photos.kind=karpaty", "sources.photos"),
        ("sources=3", "sources must be a table"),
        ("validate_every=0", "validate_every must be at least 1, and is 0"),
        ("workers=-1", "workers must be at least 0, and is -1"),
        ("optimizer.learning_rate=0", "learning_rate must be more than 0 and finite, and is 0"),
        ("optimizer.learning_rate=inf", "learning_rate must be more than 0 and finite, and is inf"),
        pytest.param(
            f"optimizer.learning_rate={10**400}", "learning_rate must .*finite, and is inf", id="huge"
        ),
        (f"seed={10**26}", "seed must be at most 9223372036854775807, and is 1000"),
        ("seed=-5", "seed must be at least 0, and is -5"),
        pytest.param("seed=" + "[" * 5000, r"seed must be int, and is '\[{99}$", id="deep"),
        ("augmentation.smallest_crop=1.5", "smallest_crop must be at most 1, and is 1.5"),
        ("adapters.rank=0", "Adapters of rank 0 and alpha 16 learn nothing"),
        ("adapters.alpha=0", "Adapters of rank 16 and alpha 0 learn nothing"),
        ("lvlm.tower_depths=[1]", r"a depth for each .* tower_depths \[1\]"),
        (
            "lvlm={image_size=8,tower_stem=8,tower_widths=[],tower_depths=[],vocabulary=9,width=8,intermediate=8,"
            "layers=1,heads=1}",
            r"tower_widths are \[\]",
        ),
        ("lvlm.width=330", "A width of 330 is not shared evenly by"),
        ("contrastive_weight=nan", "contrastive_weight must be at least 0, and is nan"),
        ("lvlm.layers=0", "layers must be at least 1, and is 0"),
        ('lvlm={bass = "x"}', "lvlm must hold exactly"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_settings(TINY, [override])


@pytest.mark.parametrize("text", [b"# caf\xe9", b"a=" + b"[" * 5000, b"a"], ids=["latin", "deep", "half"])
def test_a_file_that_is_no_toml_is_one_sentence(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "run.toml").write_bytes(text)
    with pytest.raises(DatasetError, match=r"run\.toml cannot be read as training settings: "):
        read_settings(tmp_path / "run.toml")


def test_without_adapters_their_size_does_not_matter() -> None:
    assert read_settings(TINY, ["adapters.mode=none", "adapters.rank=0"]).adapters.rank == 0


@pytest.mark.parametrize(("until", "steps"), [(700, [150, 465, 85]), (615, [150, 465]), (1, [1])])
def test_a_run_that_ends_sooner_leaves_out_its_last_steps_and_nothing_else(
    until: int, steps: list[int]
) -> None:
    whole = read_settings(TINY)
    ended = end_run_at(whole, until)
    assert [batch.steps for batch in ended.batches] == steps
    assert replace(ended, batches=whole.batches) == whole


@pytest.mark.parametrize("until", [-1, 0, 5615])
def test_a_run_cannot_end_where_it_has_no_step(until: int) -> None:
    with pytest.raises(DatasetError, match=f"5614 steps: .* not at {until}"):
        end_run_at(read_settings(TINY), until)
