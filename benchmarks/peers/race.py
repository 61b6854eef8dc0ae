"""The whole job, from photos to hits, by fwd2bot and by what people use now, in turn, with the same weights.

    python -m benchmarks.peers.race --place DIR --rival rclip-3.3.0 --count 2000 --megapixels 1 12 --json FILE

makes an environment for each side under DIR, and one CLIP model of random weights for both. In every round
each side indexes a few photos and all of them from nothing, indexes again with nothing changed (rclip answers
a query whenever it indexes: it has no command without), and is asked one query from a cold start. Images a
second leave the time to start out: more photos by more seconds. Then each is killed (SIGKILL) when half of
its photos should be done, and its store is filled up with random rows and asked again. Peak memory is that of
the largest process. A ratio above 1 says that fwd2bot is better.
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.command import (
    at_least,
    describe_run,
    make_result_parser,
    refuse_overwriting,
    run_command,
    write_result,
)
from benchmarks.peers.contenders import RIVALS, Contender, prepare_pair
from benchmarks.peers.race_results import Figures, Kill, Lap, Race, RaceResult, compare_sides, render_race
from benchmarks.photos import write_photos
from benchmarks.speed import Run, time_process
from encoders.base import Fwd2BotError

_MODULE = "benchmarks.peers.race"
_FEW = 32


@dataclass(frozen=True)
class Photos:
    """Two folders of photos of one size: a few, and `count`."""

    few: Path
    all: Path
    count: int
    megapixels: float


@contextmanager
def make_store() -> Iterator[Path]:
    """An empty folder for all that one side keeps."""
    with TemporaryDirectory(prefix="fwd2bot-race-") as store:
        yield Path(store)


def index_photos(side: Contender, photos: Path, store: Path) -> Run:
    """Run what brings the store in line with the photos: seconds together, and the highest peak."""
    runs = [
        time_process(command, side.name, photos, side.variables(store))
        for command in side.index_commands(photos, store)
    ]
    return Run(sum(run.seconds for run in runs), max(run.peak_mib for run in runs))


def search_store(side: Contender, photos: Path, store: Path) -> Run:
    """Ask one query from a cold start."""
    return time_process(side.search_command(photos, store), side.name, photos, side.variables(store))


def run_lap(side: Contender, photos: Photos) -> Lap:
    """Index few and all, index again, and search.

    Few are indexed twice and timed once: what the system had dropped from memory while the other side ran
    would else be counted as start, and make the photos look faster than they are.
    """
    for _ in range(2):
        with make_store() as store:
            few = index_photos(side, photos.few, store)
    with make_store() as store:
        first = index_photos(side, photos.all, store)
        second = index_photos(side, photos.all, store)
        search = search_store(side, photos.all, store)
    if first.seconds <= few.seconds:
        raise Fwd2BotError(
            f"{side.name} took {few.seconds:.1f} s for {_FEW} photos and {first.seconds:.1f} s for "
            f"{photos.count}: give --count more, so that photos and not the start decide."
        )
    return Lap((photos.count - _FEW) / (first.seconds - few.seconds), first, second, search)


def kill_run(side: Contender, photos: Photos, seconds: float) -> Kill:
    """Kill an index run, with all its children, after so many seconds; see what is left, and let it end."""
    with make_store() as store:
        _run_and_kill(side, photos.all, store, seconds)
        stored = side.count_stored(store)
        return Kill(photos.count, stored, seconds, index_photos(side, photos.all, store).seconds)


def _run_and_kill(side: Contender, photos: Path, store: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    for command in side.index_commands(photos, store):
        process = subprocess.Popen(
            command,
            cwd=photos,
            env=os.environ | dict(side.variables(store)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return


def search_among(side: Contender, photos: Photos, rows: int, rounds: int) -> list[Run]:
    """Ask among so many rows, from a cold start each time."""
    with make_store() as store:
        index_photos(side, photos.few, store)
        side.fill_store(photos.few, store, rows)
        return [search_store(side, photos.few, store) for _ in range(rounds)]


def run_race(sides: tuple[Contender, Contender], photos: Photos, rounds: int, rows: int) -> Race:
    """Let both race in turn, so that what slows the machine down slows both."""
    for side in sides:
        with make_store() as store:
            index_photos(side, photos.few, store)  # a first start waits for the disk
    laps: tuple[list[Lap], list[Lap]] = ([], [])
    for number in range(rounds):
        for side, its_laps in zip(sides, laps, strict=True):
            its_laps.append(run_lap(side, photos))
            print(f"round {number + 1}: {side.name} {its_laps[-1].images_per_second:.2f}/s", file=sys.stderr)
    figures = []
    for side, its_laps in zip(sides, laps, strict=True):
        half = statistics.median(lap.first.seconds for lap in its_laps) / 2
        kill = kill_run(side, photos, half)
        large = search_among(side, photos, rows, rounds)
        figures.append(Figures(side.name, dict(side.versions), its_laps, kill, rows, large))
    ours, theirs = figures
    return Race(photos.megapixels, photos.count, ours, theirs, compare_sides(ours, theirs))


def prepare_photos(place: Path, count: int, megapixels: float) -> Photos:
    """Draw the photos that are not there yet; a folder has its name once it is whole."""
    few, many = (place / f"photos-{number}-{megapixels:g}" for number in (_FEW, count))
    for folder, number in ((few, _FEW), (many, count)):
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            write_photos(part, number, megapixels)
            part.rename(folder)
    return Photos(few, many, count, megapixels)


def main(arguments: Sequence[str] | None = None) -> int:
    """The whole job of fwd2bot and of a rival, on the same photos and weights, on the CPU."""
    parser = make_result_parser(_MODULE, main.__doc__)
    parser.add_argument("--place", type=Path, required=True, help="where environments and photos go")
    parser.add_argument("--rival", choices=list(RIVALS), default="rclip-3.3.0")
    parser.add_argument(
        "--count", type=at_least(_FEW + 1), default=400, help="how many photos (default: %(default)s)"
    )
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1.0], help="of a photo")
    parser.add_argument(
        "--rounds", type=at_least(1), default=3, help="of both in turn (default: %(default)s)"
    )
    parser.add_argument(
        "--rows", type=at_least(_FEW + 1), default=100_000, help="of the large query (default: %(default)s)"
    )
    options = parser.parse_args(arguments)

    def measure() -> None:
        refuse_overwriting(options.json, options.force)
        place = options.place.resolve()
        sides = prepare_pair(place, options.rival)
        races = []
        for megapixels in options.megapixels:
            photos = prepare_photos(place, options.count, megapixels)
            races.append(run_race(sides, photos, options.rounds, options.rows))
            print(render_race(races[-1]))
        write_result(options.json, describe_run(_MODULE, arguments, None), RaceResult(options.rival, races))

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
