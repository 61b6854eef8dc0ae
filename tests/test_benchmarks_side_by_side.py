"""Encoders are measured alike, each in its own process; a contact sheet shows where one is wrong."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import contact_sheet, side_by_side
from benchmarks.contact_sheet import find_rows, render_page
from benchmarks.datasets import CaptionedImage
from benchmarks.peers.contenders import Architecture, Fwd2bot
from encoders.base import Fwd2BotError
from tests.conftest import PALETTE, FakeEncoder, paint


def test_an_encoder_is_measured_at_every_batch_and_weighed_as_it_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(side_by_side, "load_encoder", lambda name, device: FakeEncoder())
    figures = side_by_side.measure_encoder("fake", "cpu", 0.0)
    assert list(figures.images_per_second) == [1, 4, 16, 64]
    assert min(*figures.images_per_second.values(), figures.texts_per_second, figures.peak_mib) > 0
    assert figures.bytes_per_image == 2 * 8 + 4 * 8 + 4 * 4  # the vector, four tokens of eight, their scales


def test_what_cannot_run_is_said_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(side_by_side, "load_encoder", lambda name, device: FakeEncoder(summaries=False))

    def measure(
        model: str, device: str, seconds: float, place: Fwd2bot | None
    ) -> side_by_side.EncoderFigures:
        if model == "absent":
            raise Fwd2BotError("pip install it")
        assert (place is not None) == (model == "openclip:b/random")
        return side_by_side.measure_encoder(model, device, 0.0)

    def prepare(place: Path, rival: str) -> Fwd2bot:
        return Fwd2bot(place / "python", Architecture("b", "random", place / "hub", place / "data"), {})

    monkeypatch.setattr(side_by_side, "measure_in_child", measure)
    monkeypatch.setattr(side_by_side, "prepare_ours", prepare)
    out = tmp_path / "out.json"
    arguments = ["--models", "a", "absent", "--place", str(tmp_path), "--json", str(out)]
    assert side_by_side.main(arguments) == 0
    result = json.loads(out.read_text())["result"]
    assert (result["random"], result["skipped"]) == (["openclip:b/random"], {"absent": "pip install it"})
    lines = capsys.readouterr().out.splitlines()
    assert "trained" in lines[1] and "random" in lines[2] and "pip install it" in lines[3]
    assert side_by_side.main(["--models", "absent"]) == 1
    assert "pip install it" in capsys.readouterr().err.splitlines()[-1]


def test_a_child_that_fails_is_quoted() -> None:
    with pytest.raises(Fwd2BotError, match="no-such-model"):
        side_by_side.measure_in_child("no-such-model", "cpu", 0.0)


def test_a_child_runs_in_the_environment_of_its_place(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$HF_HOME" >&2\nexit 1\n')
    python.chmod(0o700)
    ours = Fwd2bot(python, Architecture("b", "random", tmp_path / "hub", tmp_path), {})
    with pytest.raises(Fwd2BotError, match=str(tmp_path / "hub")):
        side_by_side.measure_in_child(ours.model, "cpu", 0.0, ours)


def make_photos(folder: Path) -> list[CaptionedImage]:
    return [
        CaptionedImage(paint(folder / f"{name}.png", colour), (f"<{name}> {name}",), "test")
        for name, colour in PALETTE.items()
    ]


def test_a_sheet_shows_the_worst_first_and_marks_the_right_photo_once_in_each_row(tmp_path: Path) -> None:
    photos = make_photos(tmp_path)
    swapped = [CaptionedImage(photos[1].path, photos[0].captions, "test"), *photos[1:]]
    rows = find_rows(FakeEncoder(), swapped, 8, seed=0)
    assert len(rows) == 8 and rows[0].right == 0 and rows[0].rank > rows[1].rank
    assert [row.rank for row in rows] == sorted((row.rank for row in rows), reverse=True)
    page = render_page("<title>", rows, swapped)
    assert page.count("class=right") == 8
    assert "&lt;red&gt; red" in page and "<red>" not in page and "&lt;title&gt;" in page
    assert not re.search(r"(src|href)=[\"']?(?!data:)", page.replace('src="data:', ""))


def test_the_sheet_command_writes_one_file_and_never_over_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contact_sheet, "load_encoder", lambda name, device: FakeEncoder())
    lines = [
        json.dumps({"image": photo.path.name, "caption": photo.captions[0].split()[-1]})
        for photo in make_photos(tmp_path)
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    out = tmp_path / "sheet.html"
    arguments = ["--dataset", str(tmp_path / "captions.jsonl"), "--out", str(out), "--count", "5"]
    assert contact_sheet.main(arguments) == 0
    assert "5 queries: the right photo first 5" in capsys.readouterr().out
    assert out.read_text().count("class=right") == 5
    assert contact_sheet.main(arguments) == 1
    assert "--force" in capsys.readouterr().err
