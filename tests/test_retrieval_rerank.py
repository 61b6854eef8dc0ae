"""Reranking the nearest images by their stored tokens: which ones, in which order, and what is refused."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.datasets import CaptionedImage
from benchmarks.reranking import describe_reranking, measure_reranking
from benchmarks.stored_forms import Captions, index_images
from encoders.base import CannotAnswer, FloatArray, QueryError
from indexer.build import BuildSettings
from indexer.build import build as build_index
from indexer.compact import compact_index
from indexer.table import EmbeddingTable
from retrieval import rerank
from retrieval.rerank import rank_again
from retrieval.search import Searcher
from tests.conftest import FakeEncoder, paint, run, run_main

Install = Callable[[FakeEncoder], None]


class Contrarian(FakeEncoder):
    """Gives any text a higher likelihood the less the image resembles the colours of the palette."""

    def match(self, summaries: FloatArray, texts: Sequence[str]) -> FloatArray:
        assert len(summaries) == len(texts)
        return np.asarray(-summaries.sum(axis=(1, 2)), np.float32)


@pytest.fixture
def index_dir(gallery: Path, installed_encoder: Install) -> Path:
    encoder = Contrarian()
    installed_encoder(encoder)
    for number in range(30):
        colour = tuple(np.random.default_rng(number).integers(0, 255, 3).tolist())
        paint(gallery / f"mixed{number:02d}.png", colour)
    build_index(gallery, gallery / ".fwd2bot", encoder)
    return gallery / ".fwd2bot"


def test_the_order_is_that_of_the_sum_of_both_at_unit_spread() -> None:
    random = np.random.default_rng(0)
    cosines, likelihoods = random.random(50).astype(np.float32), random.random(50).astype(np.float32) * 40
    sums = [
        (cosine - np.mean(cosines)) / np.std(cosines) + (likely - np.mean(likelihoods)) / np.std(likelihoods)
        for cosine, likely in zip(cosines, likelihoods, strict=True)
    ]
    assert rank_again(cosines, likelihoods).tolist() == sorted(range(50), key=lambda place: -sums[place])


@pytest.mark.parametrize("count", [0, 1, 5])
def test_what_is_alike_keeps_its_order(count: int) -> None:
    alike = np.full(count, -3.0, np.float32)
    assert rank_again(alike, alike).tolist() == list(range(count))
    pairs = np.arange(40 * count, dtype=np.float32) % 2
    assert rank_again(pairs, pairs).tolist() == [*range(1, 40 * count, 2), *range(0, 40 * count, 2)]


def test_the_nearest_are_ranked_again_and_the_others_left(index_dir: Path) -> None:
    searcher = Searcher.open(index_dir)
    plain, again = searcher.search("red", 20), searcher.search("red", 20, rerank=12)
    table = EmbeddingTable.open(index_dir)
    summaries = table.read_summaries([hit.id for hit in plain[:12]])
    likelihoods = Contrarian().match(summaries, ["red"] * 12)
    order = rank_again(np.array([hit.score for hit in plain[:12]], np.float32), likelihoods)
    assert again == [*(plain[place] for place in order), *plain[12:]]
    assert again != plain
    assert searcher.search("red", 3, rerank=12) == again[:3]
    assert searcher.search("red", 20, rerank=0) == plain
    assert len(searcher.search("red", 100, rerank=1000)) == 38
    with pytest.raises(QueryError, match="0 results"):
        searcher.search("red", 0, rerank=12)


def test_images_are_judged_the_same_in_any_batch(index_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = Searcher.open(index_dir)
    whole = searcher.search("blue", 38, rerank=38)
    monkeypatch.setattr(rerank, "_AT_ONCE", 5)
    assert searcher.search("blue", 38, rerank=38) == whole


def test_an_image_that_a_compaction_has_dropped_is_ranked_no_more(index_dir: Path) -> None:
    searcher = Searcher.open(index_dir)
    hits = searcher.search("red", 10)
    (index_dir.parent / hits[3].path).unlink()
    build_index(index_dir.parent, index_dir, Contrarian())
    compact_index(index_dir)
    assert {hit.id for hit in searcher.rerank("red", hits)} == {hit.id for hit in hits} - {hits[3].id}
    assert searcher.rerank("red", []) == []


def test_a_model_or_an_index_without_tokens_cannot_rank_again(index_dir: Path) -> None:
    class Mute:
        name, fingerprint, dim = "mute", "fake-1", 8
        encode_texts = Contrarian().encode_texts

    opened = Searcher.open(index_dir)
    searcher = Searcher(index_dir, opened.manifest, opened._neighbours, Mute())
    assert searcher.search("red", 5) == opened.search("red", 5)
    with pytest.raises(CannotAnswer, match="mute cannot talk"):
        searcher.search("red", 5, rerank=5)
    build_index(index_dir.parent, index_dir, Contrarian(), BuildSettings(tokens="none", rebuild=True))
    with pytest.raises(CannotAnswer, match="keeps no summary tokens"):
        Searcher.open(index_dir).search("red", 5, rerank=5)


def test_the_command_prints_the_new_order_and_refuses_where_there_are_no_tokens(
    index_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(index_dir.parent)
    expected = [hit.path for hit in Searcher.open(index_dir).search("red", 5, rerank=12)]
    assert run("search", "red", "-k", "5", "--rerank", "12", "--paths").stdout.splitlines() == expected
    assert run("search", "red", "-k", "5", "--paths").stdout.splitlines() != expected
    run("index", ".", "--tokens", "none", "--rebuild")
    code, out, err = run_main(monkeypatch, capsys, "search", "red", "--rerank", "3")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "keeps no summary tokens" in err


def test_the_benchmark_counts_what_the_search_finds(tmp_path: Path, installed_encoder: Install) -> None:
    encoder = Contrarian()
    installed_encoder(encoder)
    colours = np.random.default_rng(3).integers(0, 255, (30, 3)).tolist()
    words = ["red", "green", "blue", "white"]
    images = [
        CaptionedImage(paint(tmp_path / f"{number}.png", tuple(colour)), (words[number % 4], "black"), "")
        for number, colour in enumerate(colours)
    ]
    texts = [caption for image in images for caption in image.captions]
    captions = Captions(encoder.encode_texts(texts), np.repeat(np.arange(30), 2), texts)
    index = index_images(encoder, images, tmp_path / "new")
    report = measure_reranking(encoder, index, captions, 30, 7)
    searcher, found = Searcher.open(index), {0: [], 7: []}
    for depth, hits in found.items():
        for text, row in zip(texts, captions.image_rows, strict=True):
            paths = [hit.path for hit in searcher.search(text, 5, rerank=depth)]
            hits.append(float(any(path.startswith(f"{row:09d}") for path in paths)))
    plain, again = (np.array(hits) for hits in found.values())
    assert (report.plain.hits[5], report.again.hits[5]) == (plain.mean(), again.mean())
    assert report.gains[5] == pytest.approx(again.mean() - plain.mean())
    of_images = (again - plain).reshape(30, 2).mean(axis=1)
    assert report.errors[5] == pytest.approx(of_images.std() / np.sqrt(30))
    assert report.errors[5] > 0
    assert "the 7 nearest" in describe_reranking(report)
