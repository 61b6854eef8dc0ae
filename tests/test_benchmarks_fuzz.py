"""A small fixed run of the fuzzer, and checks that it would find a crash, a hang or a fault."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.fuzz import find_fault, make_mutant, read_mutant
from benchmarks.fuzz_files import make_files
from indexer.decode import quiet_pillow
from indexer.images import ImageFile, Photo

ROOT = Path(__file__).resolve().parent.parent
FILE = ImageFile("a.png", 1, 1)
SMALL = Image.new("RGB", (4, 4))


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a separate process: the fuzzer forks, and a test run has threads."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.skipif(os.name != "posix", reason="limits on memory are those of POSIX")
def test_no_mutant_of_a_fixed_few_crashes_hangs_or_fills_the_memory(tmp_path: Path) -> None:
    done = run_python(
        "-m", "benchmarks.fuzz", "--count", "90", "--seed", "7", "--json", str(tmp_path / "out.json")
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())["result"]
    assert (result["count"], result["seed"], result["faults"]) == (90, 7, [])
    assert min(result["decoded"], result["refused"]) > 20  # mutants are neither all intact nor all unreadable
    assert f"90 mutants: {result['decoded']} images decoded" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="limits on memory are those of POSIX")
def test_a_crash_a_hang_and_a_flood_are_each_a_line_and_no_end() -> None:
    code = """
import os, time
from benchmarks import fuzz

def read(number):
    if number == 1: os.abort()
    if number == 3: time.sleep(60)
    if number == 4: bytearray(8 << 30)
    return fuzz.Reading(1, 0, 0.0, "")

for reading in fuzz.watch_readings(read, 6, seconds=2.0): print(reading.fault or "fine")
"""
    done = run_python("-c", code)
    assert done.stdout.splitlines() == [
        "fine",
        "the reader died with exit code -6",
        "fine",
        "the reader took longer than 2 s",
        "the reader died with exit code 1",
        "fine",
    ]


def test_a_mutant_is_the_same_whenever_it_is_made() -> None:
    sound = make_files()
    mutants = [make_mutant(3, number) for number in range(2 * len(sound))]
    assert mutants == [make_mutant(3, number) for number in range(2 * len(sound))]
    assert {name for name, _ in mutants} == set(sound)
    changed = sum(content != sound[name] for name, content in mutants)
    assert changed > 0.9 * len(mutants)
    assert mutants != [make_mutant(4, number) for number in range(2 * len(sound))]


def test_what_leaves_the_reader_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Photo:
        raise RuntimeError("escaped")

    with quiet_pillow():
        assert read_mutant(tmp_path, 1, 0).fault == ""
    monkeypatch.setattr("benchmarks.fuzz.read_photo", fail)
    assert read_mutant(tmp_path, 1, 0).fault == "raised RuntimeError('escaped')"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "photo",
    [
        Photo(FILE),
        Photo(FILE, image=SMALL, error="both"),
        Photo(FILE, error="two\nlines"),
        Photo(FILE, error="MemoryError"),
        Photo(FILE, image=Image.new("L", (4, 4))),
        Photo(FILE, image=Image.new("RGB", (2000, 4))),
        Photo(ImageFile("a.png", 1 << 63, 1), error="a size beyond its column"),
        Photo(ImageFile("\udcff.png", 1, 1), error="a path that is no text"),
        *(
            Photo(FILE, image=SMALL, metadata=Photo(FILE).metadata._replace(**wrong))
            for wrong in (
                {"latitude": 1.0},
                {"latitude": 91.0, "longitude": 0.0},
                {"latitude": 0.0, "longitude": float("nan")},
                {"camera": "a\nb"},
                {"lens": "x" * 101},
                {"orientation": 0},
                {"taken_at": "2021"},
            )
        ),
    ],
)
def test_each_fault_is_seen(photo: Photo) -> None:
    assert find_fault(photo)


def test_a_sound_photo_has_no_fault() -> None:
    metadata = Photo(FILE).metadata._replace(taken_at=datetime(2020, 1, 1), latitude=-90.0, longitude=180.0)
    assert not find_fault(Photo(FILE, image=SMALL, metadata=metadata))
    assert not find_fault(Photo(FILE, error="not an image of a known format"))
