"""Drawn photos decode and differ; the throughput benchmark counts what a run did."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import throughput
from benchmarks.photos import draw_photo, write_photos
from tests.conftest import FakeEncoder


def test_photos_are_of_the_size_asked_for_and_weigh_what_a_cameras_weigh() -> None:
    content = draw_photo(3, 0.3)
    assert content == draw_photo(3, 0.3) != draw_photo(4, 0.3)
    with Image.open(io.BytesIO(content)) as photo:
        assert photo.format == "JPEG" and abs(photo.width * photo.height - 300_000) < 1000
        assert np.asarray(photo).std() > 20
    assert 0.15 < len(content) / 300_000 < 0.6


def test_no_two_photos_have_the_same_bytes_and_all_decode(tmp_path: Path) -> None:
    write_photos(tmp_path, 30, 0.01)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len({hashlib.sha256(file.read_bytes()).digest() for file in files}) == len(files) == 30
    pixels = {hashlib.sha256(Image.open(file).convert("RGB").tobytes()).digest() for file in files}
    assert len(pixels) == 12


def test_throughput_counts_all_images_and_says_what_share_of_the_bare_rate_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(throughput, "_SECONDS", 0.05)
    monkeypatch.setattr(throughput, "load_encoder", lambda name, device: FakeEncoder())
    out = tmp_path / "out.json"
    assert throughput.main(["--count", "40", "--megapixels", "0.01", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())["result"]["bottleneck"]
    assert figures["images"] == 40 and figures["batch_size"] == 4 and figures["lanes"] == 1
    better = max(figures["bare"], figures["bare_lanes"])
    assert figures["share"] == pytest.approx(figures["whole"] / better)
    seconds = figures["images"] / figures["whole"]
    assert 0 < figures["utilisation"] < 1
    assert figures["waited_seconds"] == pytest.approx(seconds * (1 - figures["utilisation"]))
    assert f"{figures['share']:.1%}" in capsys.readouterr().out


def test_throughput_of_a_folder_without_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(throughput, "load_encoder", lambda name, device: FakeEncoder())
    assert throughput.main(["--images", str(tmp_path)]) == 1
    assert "no image" in capsys.readouterr().err
