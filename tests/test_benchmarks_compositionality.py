"""The compositionality command, on scenes and on published formats, with encoders of known scores."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import compositionality
from benchmarks.composition_scores import embed_pictures, score_by_likelihood
from benchmarks.compositionality import measure_scenes
from benchmarks.embedding import decode_pictures, match_texts
from benchmarks.readers.composition import Composition, Picture
from benchmarks.scenes import draw_scene, make_scene, unique_caption
from indexer.quantize import dequantize_summaries, quantize_summaries
from tests.conftest import PALETTE, FakeEncoder, paint
from tests.knowing_encoders import SEED, KnowingEncoder, MutedEncoder, NoiseEncoder

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command with an encoder."""

    def run_command(encoder: FakeEncoder, *arguments: str) -> int:
        monkeypatch.setattr(compositionality, "load_encoder", lambda name, device: encoder)
        return compositionality.main(list(arguments))

    return run_command


def make_scene_expert(count: int) -> KnowingEncoder:
    captions = {unique_caption(make_scene(SEED, index)): index for index in range(count)}
    return KnowingEncoder(count, captions, lambda index: draw_scene(make_scene(SEED, index)))


def test_an_encoder_that_binds_words_rightly_is_given_full_marks() -> None:
    result = measure_scenes(make_scene_expert(30), 30, SEED)
    assert result.scenes is not None
    assert result.scenes.recall.hits == {1: 1.0, 10: 1.0}
    assert 0 < result.scenes.unique_captions == result.scenes.recall.queries <= 30
    assert result.scenes.recall.items == 30
    report = result.embedding["accuracy"]
    assert report.accuracy == report.mean_of_kinds == report.interval.high == 1.0
    assert set(report.by_kind.values()) == {1.0}
    assert result.generative == result.embedding
    assert sum(report.counts.values()) == report.count == result.data.compositions > 100


def test_an_encoder_that_tells_nothing_apart_is_given_none() -> None:
    result = measure_scenes(MutedEncoder(), 30, SEED)
    assert result.embedding["accuracy"].accuracy == 0.0
    assert result.generative is None
    assert result.scenes is not None
    # All scores tie, so only the first scene of the gallery is ever ranked first.
    assert result.scenes.recall.hits[1] <= 1 / result.scenes.unique_captions


def test_the_command_is_repeatable_from_its_own_record(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []
    for name in ("a.json", "b.json"):
        arguments = ["--count", "20", "--seed", str(SEED), "--json", str(tmp_path / name)]
        assert run(make_scene_expert(20), *arguments) == 0
        written.append(json.loads((tmp_path / name).read_text()))
    assert written[0]["result"] == written[1]["result"]
    assert written[0]["seed"] == SEED
    assert "relation reversed" in capsys.readouterr().out


def write_colours(folder: Path) -> Path:
    """SugarCrepe's format: each picture's caption is its colour, and its false caption the next colour."""
    colours = list(PALETTE)[:6]
    records = {}
    for number, colour in enumerate(colours):
        paint(folder / f"{colour}.png", colour)
        false = colours[(number + 1) % len(colours)]
        records[str(number)] = {"filename": f"{colour}.png", "caption": colour, "negative_caption": false}
    path = folder / "swap_att.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_a_published_set_is_scored_by_embedding_and_by_likelihood_side_by_side(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_colours(tmp_path), tmp_path / "out.json"
    arguments = ["--form", "sugarcrepe", "--dataset", str(path), "--json", str(out)]
    assert run(FakeEncoder(), *arguments) == 0
    result = json.loads(out.read_text())["result"]
    assert result["data"] == {
        "dataset": "swap_att.json",
        "form": "sugarcrepe",
        "compositions": 6,
        "pictures": 6,
        "missing": 0,
    }
    for score in ("embedding", "generative"):
        assert result[score]["accuracy"]["accuracy"] == 1.0
        assert result[score]["accuracy"]["counts"] == {"swap_att": 6}
        assert result[score]["accuracy"]["chance"] == 0.5
    assert result["scenes"] is None
    assert "by likelihood" in capsys.readouterr().out
    assert run(FakeEncoder(summaries=False), *arguments, "--force") == 0
    assert json.loads(out.read_text())["result"]["generative"] is None


def test_missing_photos_are_left_out_only_where_allowed_and_the_result_says_so(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_colours(tmp_path), tmp_path / "out.json"
    (tmp_path / "red.png").unlink()
    arguments = ["--form", "sugarcrepe", "--dataset", str(path), "--json", str(out)]
    assert run(FakeEncoder(), *arguments) == 1
    assert "1 of 6 photos are not in" in capsys.readouterr().err
    assert run(FakeEncoder(), *arguments, "--allow-missing") == 0
    data = json.loads(out.read_text())["result"]["data"]
    assert (data["compositions"], data["missing"]) == (5, 1)
    assert "(1 more missing)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--form", "vsr"], ["--dataset", "x.json"], ["--images", "photos"], ["--allow-missing"]]
)
def test_options_that_another_form_needs_are_wrong_usage(run: Run, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(FakeEncoder(), *arguments)
    assert stopped.value.code == 2


def test_likelihoods_are_those_of_int8_tokens_for_every_pair_of_picture_and_caption(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    random = np.random.default_rng(0)
    images = [
        paint(tmp_path / f"{number}.png", tuple(random.integers(0, 256, 3).tolist())) for number in range(3)
    ]
    names = [Picture(path) for path in images]
    pictures = list(decode_pictures(images, 32))
    compositions = [
        Composition((names[2], names[0]), ("red green", "blue"), 1, "k"),
        Composition((names[1],), ("blue", "cyan", "red"), 1, "k"),
    ]
    embedded = embed_pictures(encoder, pictures, 3)
    rows = {picture: row for row, picture in enumerate(names)}
    scores = score_by_likelihood(encoder, compositions, rows, embedded.tokens)
    assert scores is not None
    stored = dequantize_summaries(*quantize_summaries(encoder.encode_images(pictures).summaries))
    for each, match in zip(compositions, scores.matches, strict=True):
        for picture, found in zip(each.pictures, match, strict=True):
            expected = match_texts(encoder, stored, [rows[picture]] * len(each.captions), each.captions)
            assert np.array_equal(found, expected)
    assert score_by_likelihood(NoiseEncoder(), compositions, rows, None) is None


def write_sets(folder: Path) -> dict[str, Path]:
    """Write a set in each format, with true and false captions about colours."""
    for colour in ("red", "blue"):
        paint(folder / f"{colour}.png", colour)
    box = {"bbox_x": 4, "bbox_y": 4, "bbox_w": 9, "bbox_h": 9}
    statements = [("red", 1), ("red", 1), ("blue", 0), ("blue", 0)]
    records: dict[str, list[dict[str, object]]] = {
        "sugarcrepe++": [
            {"filename": "red.png", "caption": "red", "caption2": "a red", "negative_caption": "blue"}
        ],
        "winoground": [{"image_0": "red", "image_1": "blue", "caption_0": "red", "caption_1": "blue"}],
        "aro": [{"image_path": "red.png", "true_caption": "red", "false_caption": "blue"} | box],
        "vsr": [
            {"image": "red.png", "caption": caption, "label": label, "relation": "is"}
            for caption, label in statements
        ],
    }
    paths = {}
    for form, some in records.items():
        lines = form in ("winoground", "vsr")
        paths[form] = folder / f"{form}.json"
        paths[form].write_text("\n".join(map(json.dumps, some)) if lines else json.dumps(some))
    return paths


MEASURES = {
    "sugarcrepe++": {"image-text (ITT)", "text-only (TOT)"},
    "winoground": {"text score", "image score", "group score"},
    "aro": {"accuracy"},
    "vsr": {"accuracy"},
}


@pytest.mark.parametrize("form", MEASURES)
def test_every_form_is_judged_by_its_own_measures(tmp_path: Path, run: Run, form: str) -> None:
    path, out = write_sets(tmp_path)[form], tmp_path / "out.json"
    assert run(FakeEncoder(), "--form", form, "--dataset", str(path), "--json", str(out)) == 0
    result = json.loads(out.read_text())["result"]
    assert set(result["embedding"]) == MEASURES[form]
    assert set(result["generative"]) == MEASURES[form] - {"text-only (TOT)"}
    for report in (*result["embedding"].values(), *result["generative"].values()):
        assert report["accuracy"] == 1.0
