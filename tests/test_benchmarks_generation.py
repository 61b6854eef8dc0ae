"""Captions and answers, from tokens and from pixels, by an encoder whose replies are known."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import generation
from benchmarks.generation import measure_answers
from benchmarks.questions import Question
from benchmarks.speaking import FORMS, choose_forms
from encoders.base import CannotAnswer, FloatArray
from tests.conftest import PALETTE, FakeEncoder, paint

COLOURS = list(PALETTE)[:4]


class PoliteEncoder(FakeEncoder):
    """Says "some red thing" from tokens and "a red thing" from pixels, by colour, and nothing to "shh"."""

    def _say(self, images: Sequence[str], questions: Sequence[str], article: str) -> list[str]:
        pairs = zip(images, questions, strict=True)
        return ["" if "shh" in question else f"{article} {colour} thing" for colour, question in pairs]

    def answer(self, summaries: FloatArray, question: str | Sequence[str]) -> list[str]:
        seen = [caption.split()[-1] for caption in super().caption(summaries)]
        return self._say(seen, [question] * len(seen) if isinstance(question, str) else question, "some")

    def caption(self, summaries: FloatArray) -> list[str]:
        return self.answer(summaries, "caption")

    def caption_images(self, images: Sequence[Image.Image]) -> list[str]:
        return self.answer_images(images, ["caption"] * len(images))

    def answer_images(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        assert len(images) <= self.batch_size
        colours = np.array(list(PALETTE.values()))
        seen = [np.abs(np.asarray(image)[0, 0] - colours).sum(axis=1).argmin() for image in images]
        return self._say([list(PALETTE)[each] for each in seen], questions, "a")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four photos of one colour each with captions in Karpathy's format, and a red one with GQA questions."""
    monkeypatch.setattr(generation, "load_encoder", lambda name, device: PoliteEncoder())
    records, asked = [], {}
    for colour in COLOURS:
        paint(tmp_path / f"{colour}.png", PALETTE[colour])
        sentences = [{"raw": f"A {colour} thing."}, {"raw": f"all {colour}"}]
        records.append({"filename": f"{colour}.png", "split": "test", "sentences": sentences})
    paint(tmp_path / "red.jpg", "red")
    for number, (text, answer, kind) in enumerate(
        [("what?", "some red thing", "query"), ("shh", "", "verify"), ("or?", "a red thing", "query")]
    ):
        asked[str(number)] = {
            "imageId": "red",
            "question": text,
            "answer": answer or "-",
            "types": {"structural": kind},
        }
    (tmp_path / "captions.json").write_text(json.dumps({"images": records}))
    (tmp_path / "gqa.json").write_text(json.dumps(asked))
    return tmp_path


def run(photos: Path, dataset: str, *more: str) -> dict[str, object]:
    out = photos / "out.json"
    arguments = ["--dataset", str(photos / dataset), "--images", str(photos), "--json", str(out), "--force"]
    assert generation.main([*arguments, *more]) == 0
    result: dict[str, object] = json.loads(out.read_text())["result"]
    return result


def test_captions_are_scored_from_every_form(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(photos, "captions.json")
    assert list(result["scores"]) == list(FORMS)
    # "a red thing" is the first reference word for word; "some red thing" shares only two of its words.
    assert result["scores"]["pixels"]["cider_d"] > result["scores"]["int8"]["cider_d"] > 0
    assert result["scores"]["float32"] == result["scores"]["float16"] == result["scores"]["int8"]
    assert result["scores"]["pixels"]["rouge_l"] == 1.0
    assert set(result["cross_entropy"]) == {"float32", "float16", "int8", "another photo's"}
    printed = capsys.readouterr()
    assert "CIDEr-D" in printed.out and "nats a token" in printed.out
    absent = result["scores"]["int8"]["meteor"] is None
    assert ("nltk.downloader wordnet" in printed.err) == absent


def test_an_instruction_takes_the_place_of_the_caption_prompt(photos: Path) -> None:
    result = run(photos, "captions.json", "--instruction", "shh", "--forms", "int8")
    assert list(result["scores"]) == ["int8"]
    assert result["scores"]["int8"]["cider_d"] == result["scores"]["int8"]["bleu_4"] == 0
    assert result["instruction"] == "shh"


def test_questions_are_asked_from_every_form_and_scored_by_kind(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(photos, "gqa.json", "--task", "gqa")
    assert (result["questions"], result["images"], result["missing"]) == (3, 1, 0)
    for form in FORMS:
        assert result["scores"][form][1] == {"query": 0.5, "verify": 0.0}
    assert "33.33" in capsys.readouterr().out


def test_answers_go_to_their_questions_however_images_are_ordered(tmp_path: Path) -> None:
    paths = {colour: paint(tmp_path / f"{colour}.png", PALETTE[colour]) for colour in PALETTE}
    questions = [
        Question(paths[colour], "what?", (f"some {colour} thing",), "one")
        for _ in range(12)
        for colour in PALETTE
    ]
    reports = measure_answers(PoliteEncoder(), "gqa", questions, ["int8", "pixels"], "")
    assert reports["int8"].accuracy == 1.0
    assert reports["pixels"].accuracy == 0.0


def test_the_instruction_follows_each_question(tmp_path: Path) -> None:
    question = Question(paint(tmp_path / "red.png", "red"), "what?", ("some red thing",), "one")
    reports = measure_answers(PoliteEncoder(), "gqa", [question], ["int8"], "shh")
    assert reports["int8"].accuracy == 0.0


def test_an_encoder_speaks_from_what_it_has_alone() -> None:
    assert choose_forms(PoliteEncoder(), None) == list(FORMS)
    assert choose_forms(FakeEncoder(), None) == ["float32", "float16", "int8"]
    with pytest.raises(CannotAnswer, match=r"from pixels: it can from float32, float16, int8"):
        choose_forms(FakeEncoder(), ["pixels"])
    with pytest.raises(CannotAnswer, match="nothing"):
        choose_forms(FakeEncoder(summaries=False), None)


def test_a_missing_scorer_is_named_before_any_work(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nltk.tokenize", None)
    dataset = ["--dataset", str(photos / "not-even-there.json")]
    assert generation.main(dataset) == 1
    assert "pip install" in capsys.readouterr().err


def test_a_missing_photo_stops_unless_allowed(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "red.jpg").unlink()
    asked = ["--dataset", str(photos / "gqa.json"), "--images", str(photos), "--task", "gqa"]
    assert generation.main([*asked, "--allow-missing"]) == 1  # no photo would be left
    assert "1 of 1 photos" in capsys.readouterr().err


def test_a_split_of_questions_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        generation.main(["--task", "pope", "--dataset", "coco_pope_random.json", "--split", "val"])
    assert stopped.value.code == 2 and "have no splits" in capsys.readouterr().err
