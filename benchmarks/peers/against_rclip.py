"""Images a second of `fwd2bot index --model openclip:...` and of rclip, in turn, on the same photos.

    python -m benchmarks.peers.against_rclip --place DIR --count 400 --rounds 5 --json FILE

makes an environment for each side under DIR, and one CLIP model of random weights for both: speed does not
depend on what a model has learned. Each finds it where it keeps its downloads, so neither is changed. The
time to start is left out: a round runs both over a few photos and over all, and divides the difference in
photos by the difference in seconds.

rclip 3.3.0 runs ViT-B-32-256 through ONNX Runtime; 2.1.6, the last on PyTorch, runs OpenAI's ViT-B-32.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.command import describe_run, make_parser, refuse_overwriting, run_command, write_result
from benchmarks.peers.environments import (
    OURS,
    RCLIP_2,
    RCLIP_3,
    Installs,
    make_environment,
    module_command,
    write_random_weights,
)
from benchmarks.photos import write_photos
from encoders.base import Fwd2BotError

_MODULE = "benchmarks.peers.against_rclip"
_FEW = 32


class Peer(NamedTuple):
    """A version of rclip, and the model it uses as open_clip names it."""

    installs: Installs
    architecture: str
    pretrained: str


PEERS = {
    "3.3.0": Peer(RCLIP_3, "ViT-B-32-256", "datacomp_s34b_b86k"),
    "2.1.6": Peer(RCLIP_2, "ViT-B-32-quickgelu", "openai"),
}


@dataclass(frozen=True)
class Course:
    """Where things lie: two environments, weights as the hub and as rclip 3 keep them, photos few and all."""

    ours: Path
    theirs: Path
    model: str
    hub: Path
    data: Path
    few: Path
    all: Path


@dataclass(frozen=True)
class RaceResult:
    """Images a second, round by round, and how many times theirs ours is: median, least and most."""

    peer: str
    model: str
    images: int
    megapixels: float
    ours: list[float]
    theirs: list[float]
    ratio: float
    least_ratio: float
    most_ratio: float


def prepare_course(place: Path, version: str, count: int, megapixels: float) -> Course:
    """Make what is not there yet."""
    peer = PEERS[version]
    data = place / f"rclip-data-{version}"
    ours = make_environment(place / "ours", OURS)
    theirs = make_environment(place / f"rclip-{version}", peer.installs)
    write_random_weights(ours, place / "hub", data, peer.architecture, peer.pretrained)
    folders = [place / f"photos-{number}-{megapixels:g}" for number in (_FEW, count)]
    for folder, number in zip(folders, (_FEW, count), strict=True):
        if not folder.exists():
            write_photos(folder, number, megapixels)
    model = f"openclip:{peer.architecture}/{peer.pretrained}"
    return Course(ours, theirs, model, place / "hub", data, *folders)


def time_ours(course: Course, photos: Path) -> float:
    """Seconds of `fwd2bot index` into a new index."""
    with TemporaryDirectory(prefix="fwd2bot-race-") as scratch:
        arguments = ("index", ".", "--model", course.model, "--device", "cpu", "--index", scratch)
        return _time_command(
            module_command(course.ours, "retrieval.cli", *arguments), photos, course, Path(scratch)
        )


def time_theirs(course: Course, photos: Path) -> float:
    """Seconds of an rclip search from an empty data folder, which indexes first."""
    with TemporaryDirectory(prefix="fwd2bot-race-") as scratch:
        for kept in course.data.iterdir():
            (Path(scratch) / kept.name).symlink_to(kept)
        command = module_command(course.theirs, "rclip.main", "--filepath-only", "--top", "1", "a photo")
        return _time_command(command, photos, course, Path(scratch))


def _time_command(command: list[str], photos: Path, course: Course, scratch: Path) -> float:
    variables = {"HF_HOME": str(course.hub), "HF_HUB_OFFLINE": "1", "RCLIP_DATADIR": str(scratch)}
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=photos, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        said = done.stderr.strip().splitlines() or [str(done.returncode)]
        raise Fwd2BotError(f"{command[3]} failed: {said[-1]}")
    return seconds


def run_race(course: Course, version: str, count: int, megapixels: float, rounds: int) -> RaceResult:
    """Run both in turn, so that what slows the machine down slows both."""
    ours, theirs = list[float](), list[float]()
    for time_run in (time_ours, time_theirs):
        time_run(course, course.few)  # a first start waits for the disk, and so would hide slow photos
    for _ in range(rounds):
        for rates, time_run in ((ours, time_ours), (theirs, time_theirs)):
            few = time_run(course, course.few)
            rates.append((count - _FEW) / (time_run(course, course.all) - few))
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    return RaceResult(
        peer=f"rclip {version}",
        model=course.model,
        images=count,
        megapixels=megapixels,
        ours=ours,
        theirs=theirs,
        ratio=statistics.median(ratios),
        least_ratio=min(ratios),
        most_ratio=max(ratios),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """How many times as fast as rclip the index of the same photos and weights is made, on the CPU."""
    parser = make_parser(_MODULE, main.__doc__)
    parser.add_argument("--place", type=Path, required=True, help="where environments and photos go")
    parser.add_argument(
        "--peer", choices=list(PEERS), default="3.3.0", help="of rclip (default: %(default)s)"
    )
    parser.add_argument("--count", type=int, default=400, help="how many photos (default: %(default)s)")
    parser.add_argument("--megapixels", type=float, default=1.0, help="of a photo (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of both in turn (default: %(default)s)")
    options = parser.parse_args(arguments)

    def measure() -> None:
        refuse_overwriting(options.json, options.force)
        if options.count <= _FEW:
            raise Fwd2BotError(f"{options.count} photos are too few: give --count more than {_FEW}.")
        course = prepare_course(options.place.resolve(), options.peer, options.count, options.megapixels)
        result = run_race(course, options.peer, options.count, options.megapixels, options.rounds)
        print(f"fwd2bot  {statistics.median(result.ours):.2f} images/s, {result.peer} ", end="")
        print(f"{statistics.median(result.theirs):.2f}; ratio {result.ratio:.2f} ", end="")
        print(f"({result.least_ratio:.2f} to {result.most_ratio:.2f}), {options.rounds} rounds")
        write_result(options.json, describe_run(_MODULE, arguments, None), result)

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
