"""End-to-end race, from photos to hits: fwd2bot against an established tool, in turn, with the same weights.

    python -m benchmarks.peers.race --place DIR --rival rclip-3.3.0 --count 2000 --megapixels 1 12 --json FILE

creates an environment for each side under DIR, and one CLIP model with random weights for both. In every
round each side indexes a few photos and then all of them from scratch, indexes again with nothing changed
(rclip also answers a query whenever it indexes: it has no index-only command), and answers one query from a
cold start. Images per second exclude start-up time: they are the difference in photos between the two runs
over the difference in seconds. Then each side is killed (SIGKILL) when half of its photos should be done; and
its store is filled up with random rows and queried again. Peak memory is that of the largest process. A ratio
above 1 means that fwd2bot is better.
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
    """Two folders of photos of one size: one with a few, one with `count`."""

    few: Path
    all: Path
    count: int
    megapixels: float


@contextmanager
def make_store() -> Iterator[Path]:
    """An empty folder for everything that one side stores."""
    with TemporaryDirectory(prefix="fwd2bot-race-") as store:
        yield Path(store)


def index_photos(side: Contender, photos: Path, store: Path) -> Run:
    """Run the commands that bring the store up to date: total seconds, and the highest peak memory."""
    runs = [
        time_process(command, side.name, photos, side.variables(store))
        for command in side.index_commands(photos, store)
    ]
    return Run(sum(run.seconds for run in runs), max(run.peak_mib for run in runs))


def search_store(side: Contender, photos: Path, store: Path) -> Run:
    """Run one query from a cold start."""
    return time_process(side.search_command(photos, store), side.name, photos, side.variables(store))


def run_lap(side: Contender, photos: Photos) -> Lap:
    """Index few and all photos, index again, and search.

    The few are indexed twice and only the second run counts: otherwise, reading back what the system evicted
    from its cache while the other side ran would count as start-up, and make the photos look faster.
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
    """Kill an index run and its children after `seconds`, count what it stored, and run it to the end."""
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
    """Run one query per round among `rows` rows, each from a cold start."""
    with make_store() as store:
        index_photos(side, photos.few, store)
        side.fill_store(photos.few, store, rows)
        return [search_store(side, photos.few, store) for _ in range(rounds)]


def run_race(sides: tuple[Contender, Contender], photos: Photos, rounds: int, rows: int) -> Race:
    """Race both sides in turn, so that other load on the machine slows both."""
    for side in sides:
        with make_store() as store:
            index_photos(side, photos.few, store)  # warm the disk cache
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
    """Draw photos that do not exist yet; a folder gets its final name only once it is complete."""
    few, many = (place / f"photos-{number}-{megapixels:g}" for number in (_FEW, count))
    for folder, number in ((few, _FEW), (many, count)):
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            write_photos(part, number, megapixels)
            part.rename(folder)
    return Photos(few, many, count, megapixels)


def main(arguments: Sequence[str] | None = None) -> int:
    """Race fwd2bot against a rival end to end, on the same photos and weights, on the CPU."""
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
