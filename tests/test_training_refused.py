"""Steps that cannot be made are refused at the start, each with its own message."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from encoders.base import DatasetError, Fwd2BotError
from encoders.fwd2bot.prompts import Prompts
from tests.training_data import (
    AUGMENTATION,
    BATCHES,
    MIXED,
    PHOTOS,
    make_dataset,
    make_plain_builder,
    make_settings,
    share_out,
    write_photos,
)
from tests.training_runs import CONFIG
from tests.training_runs import make_settings as make_run_settings
from training.data_settings import (
    BatchSettings,
    CaptionGroupSettings,
    KarpathySettings,
    SourceSettings,
    UnlabelledSettings,
)
from training.initial_model import make_initial_model
from training.settings import TrainingSettings, read_settings, require_losses
from training.views import SquareViews


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_photos(tmp_path)
    return tmp_path


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_source_in_which_everything_is_broken_stops_the_run(folder: Path, in_memory: bool) -> None:
    for photo in folder.glob("*.png"):
        photo.unlink()
    with pytest.raises(DatasetError, match="there is no such picture"):
        make_dataset(folder, make_settings(in_memory))[9]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "train on nothing"),
        ([BatchSettings(0, MIXED)], "train on nothing"),
        ([BatchSettings(3, {})], "Batch 1 .* no rows"),
        ([*BATCHES, BatchSettings(3, {"photos": 0})], "Batch 5 .* holds {'photos': 0}"),
        ([BatchSettings(3, {"photos": 4, "groups": -1})], "-1 rows of groups"),
        ([BatchSettings(3, {"pictures": 4})], "source pictures: there are photos, scenes, families, groups"),
        ([BatchSettings(3, {"families": 6})], "6 rows of families: families have 4 each"),
        ([BatchSettings(3, {"photos": 4, "groups": 2}, tower_only=True)], "groups is not of pictures alone"),
    ],
)
def test_a_batch_that_cannot_be_made_is_refused_at_the_start(
    folder: Path, batches: list[BatchSettings], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        make_dataset(folder, batches=batches)


def test_a_batch_too_small_for_the_ranks_is_refused(folder: Path) -> None:
    with pytest.raises(DatasetError, match="8 or more"):
        make_dataset(folder, batches=[BatchSettings(1, {"photos": PHOTOS})], ranks=share_out(8)[0])


def test_words_are_not_learned_from_pictures_that_the_processor_reads() -> None:
    settings = replace(make_run_settings(3), augmentation=None)
    assert settings.word_weight
    with pytest.raises(DatasetError, match=r"word_weight needs .*\[augmentation\]"):
        require_losses(settings)


def test_a_source_that_would_train_nothing_is_refused(folder: Path) -> None:
    settings = make_settings()
    settings["groups"] = CaptionGroupSettings("caption_groups", "groups.jsonl", False, False)
    with pytest.raises(DatasetError, match="groups would train nothing"):
        make_dataset(folder, settings)


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ({"contrastive_weight": 0.0, "answer_weight": 0.0, "feature_weight": 0.0}, "photos"),
        ({"contrastive_weight": 0.0, "feature_weight": 0.0}, "matched"),
        ({"answer_weight": 0.0}, "said"),
    ],
)
def test_a_source_that_only_losses_without_a_weight_would_read_is_refused(
    weights: dict[str, float], named: str
) -> None:
    photos = KarpathySettings("karpathy", "dataset.json", ".", ("train",), True, True)
    sources = {
        "photos": photos,
        "matched": replace(photos, answer=False),
        "said": replace(photos, contrastive=False),
    }
    settings = replace(read_settings(CONFIG), sources=sources, word_weight=0.0)
    settings = replace(settings, batches=(BatchSettings(1, {named: 1}),))
    require_losses(settings)
    with pytest.raises(DatasetError, match=f"{named} would train nothing"):
        require_losses(replace(settings, **weights))


def weigh_nothing_but_sight(source: SourceSettings) -> TrainingSettings:
    """Settings with one source, in which only the feature loss and the word loss have a weight."""
    settings = replace(read_settings(CONFIG), sources={"it": source}, batches=(BatchSettings(1, {"it": 4}),))
    assert settings.word_weight and settings.feature_weight
    return replace(settings, contrastive_weight=0.0, answer_weight=0.0)


@pytest.mark.parametrize(("answer", "named"), [(True, "contrastive_weight, answer_weight"), (False, "contr")])
def test_texts_alone_learn_by_no_loss_on_pictures(answer: bool, named: str) -> None:
    texts = CaptionGroupSettings("caption_groups", "groups.jsonl", True, answer)
    with pytest.raises(DatasetError, match=rf"it would train nothing: give a weight .*\({named}"):
        require_losses(weigh_nothing_but_sight(texts))


@pytest.mark.parametrize(
    "source",
    [
        CaptionGroupSettings("caption_groups", "groups.jsonl", False, False),
        UnlabelledSettings("unlabelled", "."),
    ],
)
def test_a_weight_is_not_asked_for_where_none_would_help(source: SourceSettings, folder: Path) -> None:
    require_losses(weigh_nothing_but_sight(source))
    with pytest.raises(DatasetError, match="set contrastive or answer to true"):
        make_dataset(folder, {"it": source}, [BatchSettings(1, {"it": 4})])


def test_the_tower_alone_needs_the_words_of_captions() -> None:
    settings = replace(read_settings(CONFIG), word_weight=0.0)
    with pytest.raises(DatasetError, match="tower_only would train nothing"):
        require_losses(settings)
    batches = tuple(replace(each, steps=0 if each.tower_only else each.steps) for each in settings.batches)
    require_losses(replace(settings, batches=batches))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{content}", "keep a text or a question from the model"),
        ("{instruction}", "0 times for one image"),
    ],
)
def test_prompts_that_hide_a_text_or_a_question_from_the_model_are_refused(
    template: str, message: str
) -> None:
    settings = replace(make_run_settings(3), prompts=Prompts(template))
    with pytest.raises(Fwd2BotError, match=f"{message}.*{{content}}"):
        make_initial_model(settings, {}, torch.device("cpu"))


def test_squares_in_memory_need_views(folder: Path) -> None:
    with pytest.raises(DatasetError, match="in_memory"):
        make_dataset(folder, augmentation=None)


def test_views_need_a_model_that_reads_one_square_size() -> None:
    builder = make_plain_builder()
    builder.processor.image_processor.size = {"shortest_edge": 16}
    with pytest.raises(DatasetError, match=r"leave \[augmentation\] out"):
        SquareViews(builder, AUGMENTATION)
