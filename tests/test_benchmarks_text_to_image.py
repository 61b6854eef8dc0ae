"""The retrieval command: the exact score matrix, stored forms, folds, and embeddings kept between runs."""

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import text_to_image
from benchmarks.cache import EmbeddingCache, digest_photos, digest_texts
from benchmarks.command import describe_run
from benchmarks.datasets import CaptionedImage, read_karpathy
from benchmarks.folds import report_folds
from benchmarks.recall import report_pairs
from benchmarks.scenes import write_scenes
from benchmarks.stored_forms import EXACT, LISTS, TOKENS, index_images, measure_stored_forms
from benchmarks.text_to_image import embed_split
from encoders.base import DatasetError
from encoders.load import load_encoder
from indexer.quantize import dequantize_summaries, quantize_summaries
from indexer.table import EmbeddingTable
from tests.conftest import FakeEncoder, to_unit
from tests.knowing_encoders import SEED, SIZE, KnowingEncoder, MutedEncoder, NoiseEncoder, know_scenes

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command with an encoder on the scenes of a folder; it does not touch the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run_command(folder: Path, encoder: FakeEncoder, *more: str) -> int:
        monkeypatch.setattr(text_to_image, "load_encoder", lambda name, device: encoder)
        dataset = str(folder / "dataset_scenes.json")
        return text_to_image.main(["--dataset", dataset, "--images", str(folder), *more])

    return run_command


def read_split(folder: Path) -> list[CaptionedImage]:
    return read_karpathy(folder / "dataset_scenes.json", folder, ["test"])


def test_an_encoder_that_knows_every_picture_is_given_full_marks_in_every_form(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = know_scenes(8, tmp_path / "scenes")
    (tmp_path / "scenes" / next((tmp_path / "scenes").glob("00003*.png")).name).unlink()
    out = tmp_path / "out.json"
    more = ["--allow-missing", "--index-forms", "--rerank", "3", "--folds", "2", "--json", str(out)]
    assert run(tmp_path / "scenes", encoder, *more) == 0
    written = json.loads(out.read_text())
    assert written["command"].startswith("python -m benchmarks.text_to_image --dataset ")
    assert written["encoder"]["fingerprint"] == "f1"
    assert written["versions"]["numpy"] == np.__version__
    result = written["result"]
    assert result["data"] == {
        "dataset": "dataset_scenes.json",
        "split": "test",
        "images": 7,
        "captions": 35,
        "missing": 1,
    }
    assert set(result["stored"]) == {EXACT, LISTS, TOKENS}
    for form in (result["recall"], *result["stored"].values()):
        assert form["text_to_image"]["hits"] == form["image_to_text"]["hits"] == {"1": 1, "5": 1, "10": 1}
        assert form["image_to_text"]["recalls"] == pytest.approx({"1": 0.2, "5": 1, "10": 1})
        assert (form["text_to_image"]["queries"], form["image_to_text"]["queries"]) == (35, 7)
    assert result["recall"]["text_to_image"]["mean_average_precision"] == 1
    assert result["stored"][EXACT]["text_to_image"]["median_rank"] is None
    assert result["reranked"]["depth"] == 3
    assert result["reranked"]["again"]["hits"] == {"1": 1, "5": 1, "10": 1}
    assert result["folds"]["images"] == [4, 3]
    assert result["folds"]["image_to_text"]["hits"]["1"] == 1
    assert result["clip_benchmark"]["image_retrieval_recall@1"] == 1
    table = capsys.readouterr().out
    assert "text to image, hit@1" in table and "(1 more missing)" in table


def test_image_retrieval_is_text_to_image_as_clip_benchmark_has_it() -> None:
    # Text 1 ranks its image second; image 1 ranks text 0, which is not its own, first.
    images = np.array([[1, 0], [0.9, 0.1]], np.float32)
    texts = np.array([[1, 0], [0.8, 0.0], [0, 1]], np.float32)
    recall = report_pairs(images, texts, [0, 1, 1])
    names = text_to_image.name_for_clip_benchmark(recall)
    assert names["image_retrieval_recall@1"] == recall.text_to_image.hits[1] == pytest.approx(2 / 3)
    assert names["text_retrieval_recall@1"] == recall.image_to_text.hits[1] == 0.5
    assert len(names) == 6


def test_what_an_index_keeps_scores_as_what_it_keeps_written_out(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 40, SEED, SIZE)
    images, encoder = read_split(tmp_path / "scenes"), NoiseEncoder()
    photos, captions = embed_split(encoder, images, EmbeddingCache(tmp_path / "kept", encoder))
    index = index_images(encoder, images, tmp_path / "new")
    forms = measure_stored_forms(index, captions, len(images))
    rows = captions.image_rows.tolist()

    halved = report_pairs(photos.astype(np.float16).astype(np.float32), captions.vectors, rows)
    assert forms[EXACT].text_to_image.hits == halved.text_to_image.hits
    assert forms[EXACT].text_to_image.recalls == halved.text_to_image.recalls
    assert forms[EXACT].image_to_text == halved.image_to_text
    assert 0 < halved.text_to_image.hits[10] < 1

    table = EmbeddingTable.open(index)
    summaries = dequantize_summaries(*quantize_summaries(table.read_summaries(table.ids.tolist())))
    pooled = to_unit(summaries.mean(axis=1))
    assert [path.split(".")[0] for path in table.paths] == [f"{row:09d}" for row in range(40)]
    assert forms[TOKENS] == report_pairs(pooled, captions.vectors, rows)
    assert forms[LISTS].text_to_image.hits[10] == pytest.approx(halved.text_to_image.hits[10], abs=0.2)


def test_an_index_is_built_in_a_new_folder_alone(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = know_scenes(5, tmp_path / "scenes")
    for expected in (0, 1):
        assert run(tmp_path / "scenes", encoder, "--keep-index", str(tmp_path / "kept")) == expected
    assert EmbeddingTable.open(tmp_path / "kept" / "index").encoder.name == "knowing"
    assert "is not empty" in capsys.readouterr().err


def test_a_fold_is_searched_for_itself_and_the_figures_averaged() -> None:
    random = np.random.default_rng(0)
    images, texts = random.standard_normal((2, 20, 4)).astype(np.float32)
    rows = np.arange(20)
    report = report_folds(images, texts, rows, 4)
    parts = [report_pairs(images[i : i + 5], texts[i : i + 5], [0, 1, 2, 3, 4]) for i in (0, 5, 10, 15)]
    assert report.images == [5, 5, 5, 5]
    assert report.text_to_image.hits[1] == np.mean([part.text_to_image.hits[1] for part in parts])
    assert report.image_to_text.median_rank == np.mean([part.image_to_text.median_rank for part in parts])
    for folds in (1, 21):
        with pytest.raises(DatasetError, match="cannot be cut"):
            report_folds(images, texts, rows, folds)


def test_embeddings_are_made_once_for_the_same_model_and_bytes(tmp_path: Path) -> None:
    write_scenes(tmp_path, 3, SEED, SIZE)
    images, encoder = read_split(tmp_path), NoiseEncoder()
    first, captions = embed_split(encoder, images, EmbeddingCache(tmp_path / "kept", encoder))
    again, same = embed_split(encoder, images, EmbeddingCache(tmp_path / "kept", encoder))
    assert encoder.embedded == 3
    assert np.array_equal(first, again) and np.array_equal(captions.vectors, same.vectors)
    encoder.fingerprint = "another"
    embed_split(encoder, images, EmbeddingCache(tmp_path / "kept", encoder))
    assert encoder.embedded == 6
    images[0].path.write_bytes(images[1].path.read_bytes())
    changed, _ = embed_split(encoder, images, EmbeddingCache(tmp_path / "kept", encoder))
    assert encoder.embedded == 9
    assert np.array_equal(changed[0], changed[1])


def test_embeddings_of_another_device_or_of_other_numbers_are_not_those_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(device: str, dtype: torch.dtype) -> float:
        monkeypatch.setattr("encoders.precision.choose_dtype", lambda _: dtype)
        encoder = NoiseEncoder()
        encoder.device = torch.device(device)  # type: ignore[attr-defined]
        made = np.full((1, encoder.dim), next(numbers), np.float32)
        return float(EmbeddingCache(tmp_path, encoder).load_or_make("images", "d", 1, lambda: made)[0, 0])

    numbers = count()
    kinds = [("cpu", torch.float32), ("cpu", torch.bfloat16), ("cuda", torch.bfloat16)]
    assert [load(*kind) for kind in kinds * 2] == [0, 1, 2] * 2


def test_a_result_says_on_which_device_and_in_which_numbers_it_was_computed() -> None:
    encoder = load_encoder("tiny", device="cpu")
    written = describe_run("benchmarks.made", [], encoder)["encoder"]
    assert written["device"] == "cpu"
    assert written["dtype"] == str(encoder.model.lvlm.dtype).removeprefix("torch.")  # type: ignore[attr-defined]


def test_digests_tell_order_and_borders_apart(tmp_path: Path) -> None:
    assert len({digest_texts(texts) for texts in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"])}) == 4
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(path.name.encode())
    one, other = (CaptionedImage(path, ("A.",), "") for path in paths)
    assert digest_photos([one, other]) != digest_photos([other, one])


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:-1] + b"\1", lambda b: b"", lambda b: b"{}"]
)
def test_a_damaged_cache_file_is_made_anew_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes]
) -> None:
    kept, vectors = EmbeddingCache(tmp_path, NoiseEncoder()), np.zeros((2, 16), np.float32)
    kept.load_or_make("images", "d", 2, lambda: vectors)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert np.array_equal(kept.load_or_make("images", "d", 2, lambda: vectors + 1), vectors + 1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "is made anew" in lines[0] and file.name in lines[0]
    assert np.array_equal(kept.load_or_make("images", "d", 2, lambda: vectors), vectors + 1)


def test_a_result_is_never_overwritten_unasked(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = know_scenes(2, tmp_path / "scenes")
    out = tmp_path / "out.json"
    out.write_text("precious")
    assert run(tmp_path / "scenes", encoder, "--json", str(out)) == 1
    assert out.read_text() == "precious"
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert run(tmp_path / "scenes", encoder, "--json", str(out), "--force") == 0
    assert json.loads(out.read_text())["benchmark"] == "text_to_image"


def test_a_picture_that_cannot_be_decoded_is_named(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path, 2, SEED, SIZE)
    broken = next(tmp_path.glob("00001*.png"))
    broken.write_bytes(b"no picture")
    assert run(tmp_path, MutedEncoder()) == 1
    assert broken.name in capsys.readouterr().err


def test_a_model_without_tokens_is_refused_before_it_ranks_again(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path, 2, SEED, SIZE)
    encoder = FakeEncoder(summaries=False)
    assert run(tmp_path, encoder, "--rerank", "5") == 1
    assert encoder.embedded == 0  # no image was encoded
    assert "tiny keeps no summary tokens" in capsys.readouterr().err


def test_an_image_that_the_index_skips_is_no_silent_miss(tmp_path: Path) -> None:
    encoder: KnowingEncoder = know_scenes(4, tmp_path / "scenes")
    images = read_split(tmp_path / "scenes")
    _, captions = embed_split(encoder, images, EmbeddingCache(tmp_path / "kept", encoder))
    index = index_images(encoder, images[:3], tmp_path / "new")
    with pytest.raises(DatasetError, match="3 of the 4 images"):
        measure_stored_forms(index, captions, 4)
