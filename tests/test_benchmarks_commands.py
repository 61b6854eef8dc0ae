"""The generation and speed benchmarks, on inputs with known results."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import speed
from benchmarks.datasets import read_karpathy
from benchmarks.generation import measure_cross_entropy
from encoders.base import Fwd2BotError
from tests.knowing_encoders import know_scenes

ROOT = Path(__file__).parents[1]


def test_cross_entropy_is_that_of_the_true_captions_and_rises_with_another_photo(tmp_path: Path) -> None:
    encoder = know_scenes(4, tmp_path)
    images = read_karpathy(tmp_path / "dataset_scenes.json", tmp_path, ["test"])
    expected = {"float32": 1.0, "float16": 1.0, "int8": 1.0, "another photo's": 2.0}
    assert measure_cross_entropy(encoder, images) == pytest.approx(expected, abs=1e-6)


def test_a_process_is_timed_with_a_memory_of_its_own() -> None:
    # In a separate process: Linux counts what the parent held before the exec towards the child's peak.
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
