"""hit@K and ranks against their definitions written out in full."""

import numpy as np
import pytest

from benchmarks import recall
from benchmarks.recall import chance_hit_rate, rank_first_positives, report_pairs, report_recall
from encoders.base import DatasetError, EncoderError


def naive_hit_rate(scores: np.ndarray, positive: np.ndarray, cutoff: int) -> float:
    """The published definition: the recall of each query's top K, counted as a hit where it is above zero."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :cutoff]
    found = np.take_along_axis(positive, top, axis=1).sum(axis=1)
    recall_at_k = found / positive.sum(axis=1)
    return float((recall_at_k > 0).mean())


def make_pairs(
    seed: int, images: int, captions: int, levels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of few whole-number values, so that scores are exact and ties abound."""
    random = np.random.default_rng(seed)
    image_vectors = random.integers(-levels, levels + 1, (images, 3)).astype(np.float32)
    image_of_text = random.permutation(np.repeat(np.arange(images), captions))
    noise = random.integers(-1, 2, (images * captions, 3))
    return image_vectors, (image_vectors[image_of_text] + noise).astype(np.float32), image_of_text


@pytest.mark.parametrize("levels", [1, 50])
@pytest.mark.parametrize("seed", range(5))
def test_both_directions_equal_the_naive_definition_ties_included(
    seed: int, levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "_BLOCK_SCORES", 700)  # several blocks, the last one ragged
    images, texts, image_of_text = make_pairs(seed, 37, 5, levels)
    scores, positive = texts @ images.T, image_of_text[:, None] == np.arange(37)
    report = report_pairs(images, texts, image_of_text.tolist(), cutoffs=(1, 2, 5, 10, 37))
    for cutoff in (1, 2, 5, 10, 37):
        assert report.text_to_image.hits[cutoff] == naive_hit_rate(scores, positive, cutoff)
        assert report.image_to_text.hits[cutoff] == naive_hit_rate(scores.T, positive.T, cutoff)


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
