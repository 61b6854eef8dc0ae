"""hit@K and ranks against their definitions written out in full."""

import numpy as np
import pytest

from benchmarks import recall
from benchmarks.intervals import bootstrap_means, find_wilson_interval
from benchmarks.recall import (
    NO_RANK,
    chance_hit_rate,
    rank_first_positives,
    rank_positives,
    report_pairs,
    report_ranks,
    report_recall,
)
from encoders.base import DatasetError, EncoderError


def naive_recall_at_k(scores: np.ndarray, positive: np.ndarray, cutoff: int) -> np.ndarray:
    """CLIP_benchmark's `recall_at_k` for each query: true positives among the top K over all positives."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :cutoff]
    one_hot = np.eye(scores.shape[1], dtype=int)[top]  # (queries, K, items)
    return np.asarray((one_hot * positive[:, None]).sum(axis=(1, 2)) / positive.sum(axis=1))


def naive_hit_rate(scores: np.ndarray, positive: np.ndarray, cutoff: int) -> float:
    """What CLIP_benchmark prints: the share of queries with recall above zero, computed in batches."""
    batches = [
        naive_recall_at_k(scores[start : start + 16], positive[start : start + 16], cutoff)
        for start in range(0, len(scores), 16)
    ]
    return float((np.concatenate(batches) > 0).mean())


def naive_clip_metrics(images: np.ndarray, texts: np.ndarray) -> dict[str, float]:
    """open_clip's `get_clip_metrics`: image i matches text i, and ranks come from sorting the scores."""
    metrics = {}
    for name, logits in (("image_to_text", images @ texts.T), ("text_to_image", texts @ images.T)):
        ranking = np.argsort(-logits, axis=1, kind="stable")
        places = np.where(ranking == np.arange(len(ranking))[:, None])[1]
        metrics[f"{name}_median_rank"] = float(np.floor(np.median(places)) + 1)
        metrics |= {f"{name}_R@{cutoff}": float(np.mean(places < cutoff)) for cutoff in (1, 5, 10)}
    return metrics


def naive_average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """The textbook definition for one query: precision at each positive, averaged."""
    found = positive[np.argsort(-scores, kind="stable")]
    return float(np.mean([found[: place + 1].mean() for place in np.flatnonzero(found)]))


def make_pairs(
    seed: int, images: int, captions: int, levels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of small integers, so that scores are exact and ties frequent."""
    random = np.random.default_rng(seed)
    image_vectors = random.integers(-levels, levels + 1, (images, 3)).astype(np.float32)
    image_of_text = random.permutation(np.repeat(np.arange(images), captions))
    noise = random.integers(-1, 2, (images * captions, 3))
    return image_vectors, (image_vectors[image_of_text] + noise).astype(np.float32), image_of_text


@pytest.mark.parametrize("levels", [1, 50])
@pytest.mark.parametrize("seed", range(5))
def test_both_directions_equal_clip_benchmark_to_the_last_digit_ties_included(
    seed: int, levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "_BLOCK_SCORES", 700)  # several blocks, the last one shorter
    images, texts, image_of_text = make_pairs(seed, 37, 5, levels)
    scores, positive = texts @ images.T, image_of_text[:, None] == np.arange(37)
    report = report_pairs(images, texts, image_of_text.tolist(), cutoffs=(1, 2, 5, 10, 37))
    for cutoff in (1, 2, 5, 10, 37):
        assert report.text_to_image.hits[cutoff] == naive_hit_rate(scores, positive, cutoff)
        assert report.image_to_text.hits[cutoff] == naive_hit_rate(scores.T, positive.T, cutoff)
        recalls = naive_recall_at_k(scores.T, positive.T, cutoff)
        assert report.image_to_text.recalls[cutoff] == recalls.mean()
    assert report.text_to_image.recalls == report.text_to_image.hits
    means = [naive_average_precision(row, own) for row, own in zip(scores.T, positive.T, strict=True)]
    assert report.image_to_text.mean_average_precision == pytest.approx(np.mean(means), rel=1e-12)


@pytest.mark.parametrize("levels", [1, 50])
def test_pairs_equal_open_clip_to_the_last_digit_ties_included(levels: int) -> None:
    images, texts, image_of_text = make_pairs(11, 60, 1, levels)
    texts = texts[np.argsort(image_of_text)]
    expected = naive_clip_metrics(images, texts)
    report = report_pairs(images, texts, list(range(60)))
    for name, direction in (("image_to_text", report.image_to_text), ("text_to_image", report.text_to_image)):
        assert np.floor(direction.median_rank) == expected[f"{name}_median_rank"]
        assert direction.hits == {cutoff: expected[f"{name}_R@{cutoff}"] for cutoff in (1, 5, 10)}


def test_the_rank_is_that_of_the_first_positive_in_a_stable_order() -> None:
    images, texts, image_of_text = make_pairs(7, 20, 3, 1)
    groups = np.arange(20)
    expected = []
    for scores, group in zip(images @ texts.T, groups, strict=True):
        order = np.argsort(-scores, kind="stable")
        expected.append(1 + int(np.flatnonzero(image_of_text[order] == group)[0]))
    assert rank_first_positives(images, texts, groups, image_of_text).tolist() == expected
    assert report_recall(images, texts, groups, image_of_text).median_rank == float(np.median(expected))


def test_an_encoder_that_gives_one_vector_for_all_scores_no_better_than_chance() -> None:
    same_images, same_texts = np.ones((50, 4), np.float32), np.ones((50, 4), np.float32)
    report = report_pairs(same_images, same_texts, list(range(50)))
    assert report.text_to_image.hits == {1: 0.02, 5: 0.1, 10: 0.2}
    assert report.text_to_image.chance == pytest.approx(report.text_to_image.hits)


def test_the_block_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts, image_of_text = make_pairs(3, 30, 2, 1)
    whole = report_pairs(images, texts, image_of_text.tolist())
    monkeypatch.setattr(recall, "_BLOCK_SCORES", 1)
    assert report_pairs(images, texts, image_of_text.tolist()) == whole


def test_chance_is_what_shuffling_gives() -> None:
    random = np.random.default_rng(0)
    positives = np.array([5, 1, 5, 5])
    drawn = [
        np.mean([(random.permutation(20)[:3] < count).any() for count in positives]) for _ in range(4000)
    ]
    assert chance_hit_rate(positives, 20, 3) == pytest.approx(np.mean(drawn), abs=0.015)
    assert chance_hit_rate(positives, 20, 20) == chance_hit_rate(positives, 20, 99) == 1.0


def test_numbers_that_are_not_finite_are_refused_rather_than_ranked_first() -> None:
    vectors = np.eye(3, dtype=np.float32)
    broken = vectors.copy()
    broken[1, 1] = np.nan
    with pytest.raises(EncoderError, match="not finite"):
        report_pairs(broken, vectors, [0, 1, 2])


def test_a_query_without_a_positive_is_refused() -> None:
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(DatasetError, match="1 of 3 queries"):
        report_pairs(vectors, vectors, [0, 1, 1])
    with pytest.raises(DatasetError, match="one group"):
        report_pairs(vectors, vectors, [0, 1])


def test_queries_may_have_positives_of_different_number() -> None:
    scores = np.array([[3, 1, 2, 1], [1, 1, 1, 1]], np.float32)
    ranks = rank_positives(scores, np.eye(4, dtype=np.float32), np.array([7, 9]), np.array([9, 7, 7, 7]))
    assert ranks.tolist() == [[3, 2, 4], [1, NO_RANK, NO_RANK]]
    report = report_ranks(ranks, np.array([3, 1]), 4, cutoffs=(2,))
    assert (report.hits, report.recalls) == ({2: 1.0}, {2: pytest.approx((1 / 3 + 1) / 2)})
    assert report.mean_average_precision == pytest.approx(((1 / 2 + 2 / 3 + 3 / 4) / 3 + 1) / 2)


def test_what_was_not_looked_for_far_enough_has_no_median_rank() -> None:
    report = report_ranks(np.array([[2], [NO_RANK]]), np.ones(2, np.int64), 50, complete=False)
    assert report.hits == report.recalls == {1: 0.0, 5: 0.5, 10: 0.5}
    assert report.median_rank is report.mean_average_precision is None


def test_the_bootstrap_finds_the_spread_of_a_mean_and_always_the_same() -> None:
    values = np.random.default_rng(0).random((400, 2)) < (0.5, 0.1)
    intervals = bootstrap_means(values.astype(np.float64))
    assert intervals == bootstrap_means(values.astype(np.float64))
    for column, (low, high) in zip(values.T, intervals, strict=True):
        spread = 1.96 * column.std() / np.sqrt(400)
        assert (low, high) == pytest.approx((column.mean() - spread, column.mean() + spread), abs=0.008)
    assert bootstrap_means(np.ones((5, 1))) == [(1.0, 1.0)]


def test_the_intervals_of_a_report_are_those_of_its_queries() -> None:
    images, texts, image_of_text = make_pairs(5, 40, 2, 3)
    report = report_pairs(images, texts, image_of_text.tolist()).image_to_text
    for cutoff in (1, 5, 10):
        low, high = report.hit_intervals[cutoff]
        assert low <= report.hits[cutoff] <= high
        low, high = report.recall_intervals[cutoff]
        assert low <= report.recalls[cutoff] <= high
    assert report.hit_intervals[1] != report.recall_intervals[1]


@pytest.mark.parametrize(("successes", "count"), [(0, 7), (1, 7), (8, 10), (500, 1000), (7, 7)])
def test_wilsons_ends_are_where_the_share_is_just_not_refuted(successes: int, count: int) -> None:
    share = successes / count
    low, high = find_wilson_interval(successes, count)
    assert 0 <= low <= share <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        assert abs(share - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / count), rel=1e-6)
