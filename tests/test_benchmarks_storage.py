"""Every storage form is written, sized and read back; what it loses on the way is counted."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import storage
from benchmarks.datasets import CaptionedImage
from benchmarks.embedding import pool_summaries
from benchmarks.storage import measure_costs, measure_sizes, write_form
from encoders.base import ImageEmbeddings
from tests.conftest import PALETTE, FakeEncoder, paint


def make_embeddings(count: int, tokens: int, width: int) -> ImageEmbeddings:
    summaries = np.random.default_rng(0).standard_normal((count, tokens, width)).astype(np.float32)
    return ImageEmbeddings(pool_summaries(summaries), summaries)


def test_a_form_weighs_its_values_and_a_little_for_names_and_digests(tmp_path: Path) -> None:
    embeddings = make_embeddings(128, 4, 512)
    weights = {form: write_form(tmp_path, form, embeddings) for form in storage._FORMS}
    vector, tokens = 512, 4 * 512
    values = {
        "pooled float32": 4 * vector,
        "pooled float16": 2 * vector,
        "tokens float32": 2 * vector + 4 * tokens,
        "tokens float16": 2 * vector + 2 * tokens,
        "tokens int8": 2 * vector + tokens + 4 * 4,
    }
    assert values.keys() == weights.keys()
    for form, weight in weights.items():
        assert 0.8 * values[form] < weight < 1.02 * values[form] + 200, form


def test_every_width_has_each_form_for_each_number_of_tokens_and_the_mean_once() -> None:
    sizes = list(measure_sizes((2, 3), (8, 16)))
    assert [(size.form, size.tokens) for size in sizes if size.width == 8] == [
        ("pooled float32", None),
        ("pooled float16", None),
        *(
            (form, tokens)
            for tokens in (2, 3)
            for form in ("tokens float32", "tokens float16", "tokens int8")
        ),
    ]
    assert len(sizes) == 16


def test_the_cache_of_a_token_is_512_kib() -> None:
    assert storage.list_alternatives([])["KV cache of 16 tokens"] == 16 * 512 * 1024


def make_photos(folder: Path) -> list[CaptionedImage]:
    paths = {name: paint(folder / f"{name}.png", colour) for name, colour in PALETTE.items()}
    return [CaptionedImage(path, (f"something {name}",), "test") for name, path in paths.items()]


def test_forms_that_keep_enough_find_every_colour_and_only_tokens_have_a_likelihood(tmp_path: Path) -> None:
    costs = {cost.form: cost for cost in measure_costs(FakeEncoder(), make_photos(tmp_path))}
    assert list(costs) == list(storage._FORMS)
    assert {cost.recall_at_10 for cost in costs.values()} == {1.0}
    entropies = [cost.cross_entropy for cost in costs.values()]
    assert entropies[:2] == [None, None]
    assert np.ptp(entropies[2:]) < 0.02


def test_int8_tokens_are_judged_as_they_come_back(tmp_path: Path) -> None:
    embeddings = make_embeddings(3, 2, 8)
    vectors, tokens = storage._restore("tokens int8", embeddings)
    assert tokens is not None and embeddings.summaries is not None
    error = np.abs(tokens - embeddings.summaries)
    assert 0 < error.max() <= np.abs(embeddings.summaries).max() / 127
    np.testing.assert_array_equal(vectors, pool_summaries(tokens))


def test_an_encoder_without_tokens_is_judged_by_its_vectors_alone(tmp_path: Path) -> None:
    costs = measure_costs(FakeEncoder(summaries=False), make_photos(tmp_path))
    assert [cost.form for cost in costs] == ["pooled float32", "pooled float16"]


def test_the_command_weighs_forms_with_and_without_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage, "_TOKENS", (2,))
    monkeypatch.setattr(storage, "_WIDTHS", (8,))
    monkeypatch.setattr(storage, "load_encoder", lambda name, device: FakeEncoder())
    monkeypatch.setattr(storage, "draw_photo", lambda number, megapixels: b"photo")
    assert storage.main([]) == 0
    assert "nats" not in capsys.readouterr().out
    photos = make_photos(tmp_path)
    lines = [json.dumps({"image": photo.path.name, "caption": photo.captions[0]}) for photo in photos]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out.json"
    assert storage.main(["--dataset", str(tmp_path / "captions.jsonl"), "--json", str(out)]) == 0
    result = json.loads(out.read_text())["result"]
    assert result["data"]["images"] == 8 and len(result["costs"]) == 5
    assert result["alternatives"]["the photos given, mean"] > 0
    assert "nats a token" in capsys.readouterr().out
