"""The benchmark commands on encoders whose every score is known beforehand."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import compositionality, generation, speed, text_to_image
from benchmarks.compositionality import measure_compositionality, report_negatives
from benchmarks.datasets import read_karpathy
from benchmarks.generation import measure_cross_entropy
from benchmarks.scenes import draw_scene, make_scene, unique_caption, write_scenes
from benchmarks.text_to_image import measure_retrieval
from encoders.base import CannotAnswer, FloatArray, Fwd2BotError, ImageEmbeddings

SIZE = 48
SEED = 1

ROOT = Path(__file__).parents[1]


class MutedEncoder:
    """Gives all images and texts the same vector, and keeps no tokens."""

    name, fingerprint, dim, image_size, summary_shape = "muted", "f0", 8, SIZE, None

    def encode_images(self, images: Sequence[Image.Image]) -> ImageEmbeddings:
        return ImageEmbeddings(np.full((len(images), 8), 8**-0.5, np.float32), None)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return np.full((len(texts), 8), 8**-0.5, np.float32)


class KnowingEncoder:
    """Has seen scenes 0 to count - 1: a picture and its captions get one unit vector, other texts another.

    Its one summary token is that vector; `match` is its inner product with the text's vector, less two.
    """

    name, fingerprint, image_size = "knowing", "f1", SIZE

    def __init__(self, count: int, captions: dict[str, int], draw: Callable[[int], Image.Image]) -> None:
        self.dim, self.summary_shape = count + 1, (1, count + 1)
        self.captions = captions
        self.pictures = {draw(index).tobytes(): index for index in range(count)}

    def encode_images(self, images: Sequence[Image.Image]) -> ImageEmbeddings:
        vectors = np.eye(self.dim, dtype=np.float32)[[self.pictures[image.tobytes()] for image in images]]
        return ImageEmbeddings(vectors, vectors[:, None])

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return np.eye(self.dim, dtype=np.float32)[[self.captions.get(text, -1) for text in texts]]

    def caption(self, summaries: FloatArray) -> list[str]:
        return [""] * len(summaries)

    def answer(self, summaries: FloatArray, question: str) -> list[str]:
        return [""] * len(summaries)

    def match(self, summaries: FloatArray, texts: Sequence[str]) -> FloatArray:
        return (summaries[:, 0] * self.encode_texts(texts)).sum(axis=1) - 2


def know_scenes(count: int, folder: Path) -> KnowingEncoder:
    """Write scenes into a folder and get an encoder that knows each picture by any of its captions."""
    write_scenes(folder, count, SEED, SIZE)
    lines = [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]
    captions = {caption: row for row, line in enumerate(lines) for caption in line["captions"]}
    return KnowingEncoder(count, captions, lambda index: draw_scene(make_scene(SEED, index), SIZE))


def arguments_for(folder: Path, result: Path) -> list[str]:
    dataset = str(folder / "dataset_scenes.json")
    return ["--dataset", dataset, "--images", str(folder), "--json", str(result)]


def test_an_encoder_that_knows_every_picture_is_given_full_marks(tmp_path: Path) -> None:
    encoder = know_scenes(5, tmp_path)
    images = read_karpathy(tmp_path / "dataset_scenes.json", tmp_path, ["test"])
    recall = measure_retrieval(encoder, images)
    assert recall.text_to_image.hits == recall.image_to_text.hits == {1: 1.0, 5: 1.0, 10: 1.0}
    assert (recall.text_to_image.queries, recall.image_to_text.queries) == (25, 5)


def test_the_retrieval_command_writes_the_result_and_how_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = know_scenes(4, tmp_path / "scenes")
    (tmp_path / "scenes" / next((tmp_path / "scenes").glob("00003*.png")).name).unlink()
    monkeypatch.setattr(text_to_image, "load_encoder", lambda name, device: encoder)
    out = tmp_path / "out.json"
    arguments = [*arguments_for(tmp_path / "scenes", out), "--allow-missing"]
    assert text_to_image.main(arguments) == 0
    written = json.loads(out.read_text())
    assert written["command"].startswith("python -m benchmarks.text_to_image --dataset ")
    assert written["encoder"]["fingerprint"] == "f1"
    assert written["versions"]["numpy"] == np.__version__
    assert written["result"]["data"] == {
        "dataset": "dataset_scenes.json",
        "split": "test",
        "images": 3,
        "captions": 15,
        "missing": 1,
    }
    assert written["result"]["recall"]["text_to_image"]["hits"]["1"] == 1.0
    assert "text to image    100.00  100.00  100.00" in capsys.readouterr().out


def test_a_result_is_never_overwritten_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = know_scenes(2, tmp_path / "scenes")
    monkeypatch.setattr(text_to_image, "load_encoder", lambda name, device: encoder)
    out = tmp_path / "out.json"
    out.write_text("precious")
    assert text_to_image.main(arguments_for(tmp_path / "scenes", out)) == 1
    assert out.read_text() == "precious"
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert text_to_image.main([*arguments_for(tmp_path / "scenes", out), "--force"]) == 0
    assert json.loads(out.read_text())["benchmark"] == "text_to_image"


def test_a_picture_that_cannot_be_decoded_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(text_to_image, "load_encoder", lambda name, device: MutedEncoder())
    write_scenes(tmp_path, 2, SEED, SIZE)
    broken = next(tmp_path.glob("00001*.png"))
    broken.write_bytes(b"no picture")
    assert text_to_image.main(arguments_for(tmp_path, tmp_path / "out.json")) == 1
    assert broken.name in capsys.readouterr().err


def make_scene_expert(count: int) -> KnowingEncoder:
    captions = {unique_caption(make_scene(SEED, index)): index for index in range(count)}
    return KnowingEncoder(count, captions, lambda index: draw_scene(make_scene(SEED, index)))


def test_an_encoder_that_binds_words_rightly_is_given_full_marks() -> None:
    result = measure_compositionality(make_scene_expert(30), 30, SEED)
    assert result.recall.hits == {1: 1.0, 10: 1.0}
    assert 0 < result.unique_captions == result.recall.queries <= 30
    assert result.recall.items == 30
    assert result.embedding.accuracy == 1.0
    assert set(result.embedding.by_kind.values()) == {1.0}
    assert result.generative == result.embedding
    assert sum(result.embedding.counts.values()) > 100


def test_an_encoder_that_tells_nothing_apart_is_given_none() -> None:
    result = measure_compositionality(MutedEncoder(), 30, SEED)
    assert result.embedding.accuracy == 0.0
    assert result.generative is None
    # All tie, so only the first scene of the gallery is found at the first place.
    assert result.recall.hits[1] <= 1 / result.unique_captions


def test_accuracy_is_the_mean_over_negatives_and_over_those_of_a_kind() -> None:
    report = report_negatives(["a", "b", "a", "a"], np.array([True, False, True, False]))
    assert report.accuracy == 0.5
    assert report.by_kind == {"a": pytest.approx(2 / 3), "b": 0.0}
    assert report.counts == {"a": 3, "b": 1}


def test_the_compositionality_command_is_repeatable_from_its_own_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compositionality, "load_encoder", lambda name, device: make_scene_expert(20))
    written = []
    for name in ("a.json", "b.json"):
        arguments = ["--count", "20", "--seed", str(SEED), "--json", str(tmp_path / name)]
        assert compositionality.main(arguments) == 0
        written.append(json.loads((tmp_path / name).read_text()))
    assert written[0]["result"] == written[1]["result"]
    assert written[0]["seed"] == SEED
    assert "relation reversed" in capsys.readouterr().out


def test_cross_entropy_is_that_of_the_true_captions_and_rises_with_another_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = know_scenes(4, tmp_path)
    monkeypatch.setattr(generation, "load_encoder", lambda name, device: encoder)
    assert generation.main(arguments_for(tmp_path, tmp_path / "out.json")) == 0
    result = json.loads((tmp_path / "out.json").read_text())["result"]
    expected = {"float": 1.0, "float16": 1.0, "int8": 1.0, "another photo's": 2.0}
    assert result["cross_entropy"] == result["ratio"] == pytest.approx(expected, abs=1e-6)
    assert "another photo's" in capsys.readouterr().out
    with pytest.raises(CannotAnswer, match="muted"):
        measure_cross_entropy(MutedEncoder(), [])


def test_a_process_is_timed_with_a_memory_of_its_own() -> None:
    # In a process of its own: Linux counts what a parent held before the exec as its child's.
    script = (
        "import sys; from pathlib import Path; from benchmarks import speed\n"
        "speed.find_command = lambda: Path(sys.executable)\n"
        "for held in ('pass', 'import time; held = bytearray(200 << 20); time.sleep(0.2)'):\n"
        "    run = speed.time_command('-c', held)\n"
        "    print(run.peak_mib, run.seconds)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    small, large = ([float(value) for value in line.split()] for line in done.stdout.splitlines())
    assert large[0] - small[0] > 100
    assert large[1] >= 0.2


def test_a_command_that_fails_is_quoted_by_its_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "find_command", lambda: Path(sys.executable))
    with pytest.raises(Fwd2BotError, match="the last word"):
        speed.time_command("-c", "raise SystemExit('the last word')")


def test_the_table_has_a_line_for_each_process_even_where_the_sample_is_all_there_is() -> None:
    runs = [speed.Run(float(number), 100.0 * number) for number in range(1, 6)]
    table = speed.render_table(speed.SpeedResult("tiny", 7, 7, 3.5, *runs))
    peaks = [line.split()[-1] for line in table.splitlines()[1:-1]]
    assert peaks == ["100", "200", "300", "500", "400"]
