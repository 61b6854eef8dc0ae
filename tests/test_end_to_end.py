"""The installed command on drawn scenes, with the embedded model, run from outside the checkout."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.scene_world import SHAPES
from benchmarks.scenes import Scene, make_scene, name_scene, unique_caption, write_scenes

COUNT = 12
SEED = 77


class Gallery(NamedTuple):
    """A folder of scenes, indexed once for all tests; `report` is the first run's output."""

    folder: Path
    scenes: list[Scene]
    report: dict[str, Any]


def run_fwd2bot(place: Path, *arguments: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("fwd2bot")), *arguments]
    return subprocess.run(
        command, cwd=place, input=lines, capture_output=True, text=True, check=False, timeout=240
    )


def call_fwd2bot(place: Path, *arguments: str, lines: str = "") -> str:
    done = run_fwd2bot(place, *arguments, lines=lines)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def search_paths(place: Path, *arguments: str) -> list[str]:
    said = call_fwd2bot(place, "search", *arguments, "--json")
    return [json.loads(line)["path"] for line in said.splitlines()]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    folder = tmp_path_factory.mktemp("elsewhere") / "gallery"
    write_scenes(folder, COUNT, SEED)
    report = json.loads(call_fwd2bot(folder.parent, "index", "gallery", "--json"))
    return Gallery(folder, [make_scene(SEED, index) for index in range(COUNT)], report)


def test_a_true_sentence_finds_its_picture_among_the_first(gallery: Gallery) -> None:
    captions = [unique_caption(scene) for scene in gallery.scenes[:3]]
    said = call_fwd2bot(gallery.folder, "search", "-", "-k", "5", "--json", lines="\n".join(captions))
    answers = [json.loads(line)["hits"] for line in said.splitlines()]
    paths = [[hit["path"] for hit in hits] for hits in answers]
    assert search_paths(gallery.folder, captions[0], "-k", "5") == paths[0]
    assert sorted(search_paths(gallery.folder, captions[0], "-k", "5", "--rerank", "5")) == sorted(paths[0])
    for index, found in enumerate(paths):
        assert len(found) == 5
        assert name_scene(gallery.scenes[index], index, "png") in {Path(path).name for path in found}


def test_a_deleted_picture_is_still_described_and_still_answers(gallery: Gallery, tmp_path: Path) -> None:
    folder = shutil.copytree(gallery.folder, tmp_path / "moved")
    picture = folder / name_scene(gallery.scenes[3], 3, "png")
    picture.unlink()
    caption = call_fwd2bot(folder, "caption", picture.name)
    answer = call_fwd2bot(folder, "ask", picture.name, "How many objects are there?")
    assert set(caption.split()) & set(SHAPES), caption
    assert answer.strip() in {"one", "two", "three"}


def test_a_second_run_reads_nothing_again(gallery: Gallery) -> None:
    again = json.loads(call_fwd2bot(gallery.folder.parent, "index", "gallery", "--json"))
    assert (gallery.report["indexed"], gallery.report["reused"]) == (COUNT, 0)
    assert (again["indexed"], again["reused"]) == (0, COUNT)


def test_a_folder_without_an_index_is_one_plain_sentence(tmp_path: Path) -> None:
    done = run_fwd2bot(tmp_path, "search", "a red circle")
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
