"""A race computes its ratios correctly, kills runs in time, and reads each program's store in its format."""

import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import race
from benchmarks.peers.contenders import Architecture, ClipRetrieval, Fwd2bot, Rclip
from benchmarks.peers.environments import find_versions, make_environment, module_command, module_script
from benchmarks.peers.race_results import Figures, Kill, Race, Ratio, compare_sides, render_race
from benchmarks.speed import Run
from encoders.base import Fwd2BotError
from indexer.faiss_search import search_faiss
from indexer.manifest import read_manifest
from retrieval.gallery import open_neighbours
from tests.conftest import FakeEncoder, build

ROOT = Path(__file__).parents[1]
PYTHON = Path(sys.executable)
ARCHITECTURE = Architecture("ViT-B-32", "laion", Path("hub"), Path("data"))
PHOTOS = race.Photos(Path("few"), Path("all"), 132, 1.0)


class Sluggish:
    """Pretends to take 5 seconds to start (100 the first time, from a cold disk) and `seconds` per photo."""

    versions: Mapping[str, str] = {}

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds = name, seconds
        self.start = 100.0

    def time(self, photos: Path) -> Run:
        start, self.start = self.start, 5.0
        return Run(start + self.seconds * (32 if photos == PHOTOS.few else 132), 100 * self.seconds)


def make_figures(monkeypatch: pytest.MonkeyPatch, side: Sluggish) -> Figures:
    monkeypatch.setattr(race, "index_photos", lambda side, photos, store: side.time(photos))
    monkeypatch.setattr(race, "search_store", lambda side, photos, store: Run(side.seconds, 1.0))
    lap = race.run_lap(side, PHOTOS)  # type: ignore[arg-type]
    slower = replace(lap, search=Run(4 * lap.search.seconds, 1.0)) if side.name == "theirs" else lap
    kill = Kill(132, 66, 10.0, 20.0)
    return Figures(side.name, {"torch": "2.0"}, [lap, slower], kill, 1000, [Run(side.seconds, 1.0)] * 2)


def test_images_a_second_leave_the_time_to_start_out_and_ratios_are_of_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = make_figures(monkeypatch, Sluggish("ours", 0.5))
    theirs = make_figures(monkeypatch, Sluggish("theirs", 1.0))
    assert [lap.images_per_second for lap in ours.laps + theirs.laps] == [2.0, 2.0, 1.0, 1.0]
    ratios = compare_sides(ours, theirs)
    assert ratios["images/s"] == Ratio(2.0, 2.0, 2.0)
    assert ratios["cold query"] == Ratio(5.0, 2.0, 8.0)
    assert ratios["peak memory"] == Ratio(2.0, 2.0, 2.0)
    assert ratios["all photos, start included"].median == pytest.approx(137 / 71)
    table = render_race(Race(1.0, 132, theirs, ours, compare_sides(theirs, ours)))
    assert table.count("beaten") == len(ratios) and "66 of 132" in table
    both = render_race(Race(1.0, 132, ours, theirs, ratios))
    assert "beaten" not in both and "5.00 (2.00 to 8.00)" in both
    assert both.startswith("132 JPEGs of 1 megapixel,") and "theirs: torch 2.0" in both


def test_too_few_photos_are_refused_and_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "index_photos", lambda side, photos, store: Run(3.0, 1.0))
    monkeypatch.setattr(race, "search_store", lambda side, photos, store: Run(3.0, 1.0))
    with pytest.raises(Fwd2BotError, match="give --count more"):
        race.run_lap(Sluggish("ours", 1.0), PHOTOS)  # type: ignore[arg-type]


def test_photos_of_a_run_that_was_stopped_are_drawn_anew_and_whole_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path, count: int, megapixels: float) -> None:
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.jpg").touch()
            if stop and number == 40:
                raise KeyboardInterrupt

    monkeypatch.setattr(race, "write_photos", write)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        race.prepare_photos(tmp_path, 50, 1.0)
    stop = False
    for _ in range(2):
        photos = race.prepare_photos(tmp_path, 50, 1.0)
        assert [len(list(folder.iterdir())) for folder in (photos.few, photos.all)] == [32, 50]
    assert len(list(tmp_path.iterdir())) == 2


def test_weights_are_written_over_those_of_a_run_that_was_stopped(tmp_path: Path) -> None:
    # open_clip and the export, which take minutes, are stand-ins; the code that makes the folders is real.
    script = (
        "from types import SimpleNamespace as Made\n"
        "import torch, safetensors.torch\n"
        "from benchmarks.peers import environments\n"
        "torch.onnx.export = lambda *given, **more: None\n"
        "safetensors.torch.save_file = lambda tensors, path: path.touch()\n"
        "class Model(torch.nn.Module):\n"
        "    visual, encode_image, encode_text = Made(image_size=(8, 8)), None, None\n"
        "class Pretrained:\n"
        "    get_pretrained_cfg = staticmethod(lambda *given: {'hf_hub': 'timm/made/'})\n"
        "open_clip = Made(create_model=lambda name: Model(), pretrained=Pretrained, __file__=sys.argv[5])\n"
        "sys.modules['open_clip'] = open_clip\n"
        "exec(environments._MAKE_WEIGHTS)\n"
        "exec(environments._MAKE_WEIGHTS)\n"
    )
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").touch()
    places = [str(tmp_path / "hub"), str(tmp_path / "data"), "ViT", "made", str(tmp_path / "open_clip.py")]
    command = [sys.executable, "-c", f"import sys\n{script}", *places]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "data" / "tokenizer" / "bpe_simple_vocab_16e6.txt.gz").exists()


class Writer:
    """Writes a file and sleeps; when run again after a kill, it finds the file and ends at once."""

    name, versions = "writer", Mapping[str, str]
    script = "import sys, time; open(sys.argv[1], 'x').close(); time.sleep(60)"

    def index_commands(self, photos: Path, store: Path) -> Sequence[Sequence[str]]:
        if (store / "file").exists():
            return [[sys.executable, "-c", ""]]
        return [[sys.executable, "-c", self.script, str(store / "file")]]

    def variables(self, store: Path) -> Mapping[str, str]:
        return {}

    def count_stored(self, store: Path) -> int:
        return len(list(store.iterdir()))


def test_a_run_is_killed_in_time_and_what_it_left_is_counted(tmp_path: Path) -> None:
    photos = race.Photos(tmp_path, tmp_path, 7, 1.0)
    kill = race.kill_run(Writer(), photos, 1.0)  # type: ignore[arg-type]
    assert (kill.images, kill.stored, kill.seconds) == (7, 1, 1.0)
    assert kill.seconds_to_end < 30


def test_our_store_is_counted_and_filled_so_that_it_can_be_searched(gallery: Path, tmp_path: Path) -> None:
    side = Fwd2bot(PYTHON, ARCHITECTURE, {})
    assert side.count_stored(tmp_path) == 0
    build(gallery, FakeEncoder(summaries=False))  # like an open_clip model
    (gallery / ".fwd2bot").rename(gallery / "index")
    assert side.count_stored(gallery) == 8
    side.fill_store(gallery, gallery, 50)
    assert side.count_stored(gallery) == 50
    neighbours = open_neighbours(gallery / "index", read_manifest(gallery / "index"))
    assert len(search_faiss(neighbours, np.eye(8, dtype=np.float32)[:1], 50)[0]) == 50


def test_the_store_of_rclip_is_counted_and_filled_in_its_own_columns(tmp_path: Path) -> None:
    side = Rclip(PYTHON, ARCHITECTURE, {}, "rclip-3.3.0")
    assert side.count_stored(tmp_path) == 0
    vector = np.ones(4, np.float32).tobytes()
    with closing(sqlite3.connect(tmp_path / "db.sqlite3")) as database, database:
        database.execute(
            "CREATE TABLE images (id INTEGER PRIMARY KEY, deleted BOOLEAN, filepath TEXT NOT NULL UNIQUE, "
            "size INTEGER NOT NULL, vector BLOB NOT NULL, hash TEXT)"
        )
        rows = [(1, None, "a", 9, vector, "h"), (2, 1, "b", 9, vector, "h")]
        database.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)", rows)
    assert side.count_stored(tmp_path) == 1
    side.fill_store(Path("/photos"), tmp_path, 20)
    assert side.count_stored(tmp_path) == 20
    with closing(sqlite3.connect(tmp_path / "db.sqlite3")) as database:
        sizes = database.execute("SELECT DISTINCT length(vector) FROM images").fetchall()
    assert sizes == [(16,)]


def test_clip_retrieval_begins_anew_where_it_would_refuse_its_own_index(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    side = ClipRetrieval(PYTHON, ARCHITECTURE, {}, "clip-retrieval-2.45.0")
    inference, index = side.index_commands(Path("photos"), tmp_path)
    assert "inference" in inference and index[4:5] == ["index"]
    assert not (tmp_path / "index").exists()
    assert side.count_stored(tmp_path) == 0


def test_an_environment_that_is_complete_is_left_alone_and_one_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / ".complete").touch()
    assert make_environment(tmp_path / "there", [("nothing",)]) == tmp_path / "there/bin/python"
    (tmp_path / "file").touch()
    with pytest.raises(Fwd2BotError, match="venv"):
        make_environment(tmp_path / "file", [])


def test_a_module_is_run_with_its_own_arguments(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text("import sys; print(__name__, sys.argv[1:])")
    for command in (
        module_command(PYTHON, "echo", "a", "b c"),
        module_script(PYTHON, "print(__name__, sys.argv[1:])", "a", "b c"),
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout == "__main__ ['a', 'b c']\n"


def test_versions_are_those_of_the_environment() -> None:
    assert find_versions(PYTHON, ["numpy"]) == {"numpy": np.__version__}
