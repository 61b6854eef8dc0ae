"""Parts of a training run: losses against their naive definitions, random views, settings."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from encoders.base import DatasetError
from training.augment import Chance, crop_randomly, erase_patches, jitter_colours
from training.losses import HARD_NEGATIVE, ContrastiveLoss, WordLoss, bound_scale
from training.settings import OptimizerSettings, read_settings
from training.trainer import schedule_rate

TINY = Path(__file__).parent.parent / "training" / "configs" / "tiny.toml"


def unit_rows(count: int, seed: int) -> Tensor:
    return normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def chance(rows: int, seed: int = 0) -> Chance:
    return Chance(torch.Generator().manual_seed(seed), rows)


def test_with_one_positive_a_row_the_loss_is_clips_symmetric_cross_entropy() -> None:
    sources, targets, order = unit_rows(6, 1), unit_rows(6, 2), torch.tensor([3, 1, 0, 5, 4, 2])
    loss = ContrastiveLoss(temperature=0.2)(sources, targets[order], torch.arange(6), order)
    logits = sources @ targets.T / 0.2
    naive = 0.0
    for row in range(6):
        naive -= math.log(logits[row, row].exp() / logits[row].exp().sum()) / 12
        naive -= math.log(logits[row, row].exp() / logits[:, row].exp().sum()) / 12
    assert loss.item() == pytest.approx(naive, abs=1e-5)


def test_several_positives_share_the_target_and_none_is_a_negative_of_its_own() -> None:
    sources, targets = unit_rows(3, 1), unit_rows(4, 2)
    ids, target_ids = torch.tensor([7, 7, 8]), torch.tensor([7, 8, 7, 8])
    loss = ContrastiveLoss(temperature=1.0)(sources, targets, ids, target_ids)
    logits = sources @ targets.T
    forth = [-logits[r].log_softmax(0)[target_ids == ids[r]].mean() for r in range(3)]
    back = [-logits[:, c].log_softmax(0)[ids == target_ids[c]].mean() for c in range(4)]
    assert loss.item() == pytest.approx(float(sum(forth) / 3 + sum(back) / 4) / 2, abs=1e-5)


def test_a_hard_negative_repels_its_source_and_asks_for_no_match() -> None:
    sources, targets, false = unit_rows(3, 1), unit_rows(3, 2), unit_rows(1, 3)
    loss = ContrastiveLoss(temperature=1.0)
    ids = torch.arange(3)
    with_false = loss(
        sources, torch.cat([targets, false]), ids, torch.cat([ids, torch.tensor([HARD_NEGATIVE])])
    )
    logits = sources @ torch.cat([targets, false]).T
    forth = torch.nn.functional.cross_entropy(logits, ids)
    back = torch.nn.functional.cross_entropy(logits[:, :3].T, ids)
    assert with_false.item() == pytest.approx(float(forth + back) / 2, abs=1e-5)


def test_the_words_of_a_caption_share_the_target_by_their_rarity() -> None:
    frequencies = torch.tensor([0.5, 0.25, 0.0, 0.9])
    loss = WordLoss(8, frequencies)
    images = torch.randn(2, 8, generator=torch.Generator().manual_seed(3))
    words = torch.tensor([[True, True, False, False], [False, False, False, True]])
    logs = loss.head(images).log_softmax(dim=1)
    rarities = [-math.log(0.5), -math.log(0.25)]
    first = sum(rarity * -logs[0, word] for word, rarity in enumerate(rarities)) / sum(rarities)
    torch.testing.assert_close(loss(images, words), (first - logs[1, 3]) / 2)


def test_the_temperature_is_learned_and_bounded() -> None:
    loss = ContrastiveLoss(temperature=0.07)
    assert loss.temperature == pytest.approx(0.07)
    loss(unit_rows(3, 1), unit_rows(3, 2), torch.arange(3), torch.arange(3)).backward()
    assert loss.log_scale.grad is not None and loss.log_scale.grad != 0
    loss.log_scale.data.fill_(50.0)
    bound_scale(loss)
    assert loss.temperature == pytest.approx(0.01)
    loss.log_scale.grad = None  # at the bound it can still be learned
    loss(unit_rows(3, 1), unit_rows(3, 2), torch.arange(3), torch.arange(3)).backward()
    assert loss.log_scale.grad is not None and loss.log_scale.grad != 0


def test_a_whole_crop_is_the_picture_and_mirrored_its_mirror() -> None:
    pictures = torch.rand(2, 3, 12, 12)
    whole = torch.tensor([False, True])

    views = crop_randomly(pictures, 12, 1.0, whole, chance(2))
    assert views.shape == (2, 3, 12, 12)
    # The aspect ratio still varies a little, so the views are near the pictures, but not equal to them.
    straight = torch.stack([pictures[0], pictures[1].flip(-1)])
    assert (views - straight).abs().mean() < (views - straight.flip(-1)).abs().mean()


def test_a_crop_shows_at_least_the_asked_share() -> None:
    ramp = torch.linspace(0, 1, 64).view(1, 1, 1, 64).expand(200, 3, 64, 64)
    down = ramp.transpose(2, 3)
    mirror = torch.zeros(200, dtype=torch.bool)
    widths, heights = (crop_randomly(pictures, 32, 0.5, mirror, chance(200, 4)) for pictures in (ramp, down))
    width = widths[:, 0, 0, -1] - widths[:, 0, 0, 0]
    height = heights[:, 0, -1, 0] - heights[:, 0, 0, 0]
    area = (width * height) / (31 / 32) ** 2
    assert 0.43 < area.min() < 0.6  # a side may not exceed the picture, so long thin crops lose a little
    assert area.max() <= 1.1


def test_colours_move_within_bounds_and_grey_stays_grey() -> None:
    pictures = torch.rand(50, 3, 8, 8)
    jittered = jitter_colours(pictures, 0.4, chance(50))
    assert jittered.min() >= 0 and jittered.max() <= 1
    assert not torch.allclose(jittered, pictures)
    grey = torch.rand(50, 1, 8, 8).expand(-1, 3, -1, -1)
    still_grey = jitter_colours(grey, 0.4, chance(50))
    torch.testing.assert_close(still_grey[:, :1].expand_as(still_grey), still_grey, atol=1e-3, rtol=0)


def test_about_the_asked_share_of_pictures_is_erased_in_part() -> None:
    pictures = torch.rand(400, 3, 16, 16)
    erased = erase_patches(pictures, 0.3, chance(400))
    changed = (erased != pictures).flatten(1)
    assert 0.2 < changed.any(dim=1).float().mean() < 0.4
    assert changed.float().mean(dim=1).max() < 0.4
    assert torch.equal(erase_patches(pictures, 0.0, chance(400)), pictures)


def test_the_rate_warms_up_stays_and_cools_down() -> None:
    settings = OptimizerSettings(0.5, 0.1, warmup_steps=10, cooldown_steps=20, gradient_norm=1.0)
    rates = [schedule_rate(settings, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert all(rate == 0.5 for rate in rates[9:81])
    assert rates[:10] == sorted(rates[:10]) and rates[80:] == sorted(rates[80:], reverse=True)
    assert rates[-1] == pytest.approx(0.5 / 20)


def test_the_shipped_settings_can_be_read() -> None:
    settings = read_settings(TINY)
    assert settings.total_steps == sum(batch.steps for batch in settings.batches)
    assert settings.prompts.template.count("{content}") == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 1", "sead = 1", "sead"),
        ("seed = 1", 'seed = "1"', "seed must be int"),
        ("seed = 1", "seed = true", "seed must be int"),
        ("heads = 4", "", "heads"),
        ("[validation]", "[[validation]]", "must hold exactly"),
        ("seed = 1", "seed = = 1", "cannot be read"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(TINY.read_text().replace(old, new, 1))
    with pytest.raises(DatasetError, match=message):
        read_settings(path)
