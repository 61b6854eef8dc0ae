"""Time and memory of the installed command on a folder of images.

    python -m benchmarks.speed --images DIR --json FILE

times a first and a second `fwd2bot index`, `fwd2bot --help` and a search from a cold start, each as a
separate process, and compares the peak memory for 1,000 images with that for all. The index is in a temporary
folder.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from benchmarks.command import describe_run, make_parser, refuse_overwriting, run_command, write_result
from encoders.base import Fwd2BotError
from indexer.paths import unescape_path
from indexer.sources import open_source

_MODULE = "benchmarks.speed"
_SAMPLE = 1000
_QUERY = "a red circle"


@dataclass(frozen=True)
class Run:
    """One process: wall seconds, and peak resident memory in MiB (with workers, of the largest process)."""

    seconds: float
    peak_mib: float


@dataclass(frozen=True)
class SpeedResult:
    """`sample` and `first` index into an empty folder; `second` finds everything unchanged."""

    model: str
    images: int
    sample_images: int
    images_per_second: float
    sample: Run
    first: Run
    second: Run
    help: Run
    search: Run


def find_command() -> Path:
    """The fwd2bot command installed next to this Python; raises Fwd2BotError if there is none."""
    command = Path(sys.executable).with_name("fwd2bot")
    if not command.exists():
        raise Fwd2BotError(f'There is no command {command}: run pip install -e ".[cpu]" first.')
    return command


def time_command(*arguments: str) -> Run:
    """Run the installed command to completion; raises Fwd2BotError with its own message if it fails."""
    return time_process([str(find_command()), *arguments], f"fwd2bot {arguments[0]}")


def time_process(
    command: Sequence[str], name: str, folder: Path | None = None, variables: Mapping[str, str] | None = None
) -> Run:
    """Run a process in a folder, with extra environment variables; raises as `time_command` does."""
    # The parent's memory would count towards the child's peak, so this module does not import torch.
    with TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=folder,
            env=os.environ | dict(variables or {}),
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            raise Fwd2BotError(f"{name} failed: {said[-1] if said else process.returncode}")
    scale = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return Run(seconds, usage.ru_maxrss * scale / 2**20)


def measure_speed(images: Path, model: str, device: str) -> SpeedResult:
    """Index a sample, then the folder twice, search it once and ask for help, each in a new process."""
    found = [images / unescape_path(file.path) for file in open_source(images).find().files]
    options = ("--model", model, "--device", device)
    with TemporaryDirectory(prefix="fwd2bot-speed-") as place:
        sample, index = Path(place) / "sample", str(Path(place) / "index")
        _link_sample(found[:_SAMPLE], sample)
        sampled = time_command("index", str(sample), "--follow-links", *options)
        first = time_command("index", str(images), "--index", index, *options)
        second = time_command("index", str(images), "--index", index, *options)
        search = time_command("search", _QUERY, "--index", index)
    return SpeedResult(
        model=model,
        images=len(found),
        sample_images=min(_SAMPLE, len(found)),
        images_per_second=len(found) / first.seconds,
        sample=sampled,
        first=first,
        second=second,
        help=time_command("--help"),
        search=search,
    )


def _link_sample(files: Sequence[Path], folder: Path) -> None:
    folder.mkdir()
    for number, file in enumerate(files):
        (folder / f"{number:04d}{file.suffix}").symlink_to(file.resolve())


def render_table(result: SpeedResult) -> str:
    """One line for each process, and the indexing rate."""
    rows = {
        f"index, {result.sample_images:,} images": result.sample,
        f"index, all {result.images:,}": result.first,
        "index, nothing changed": result.second,
        "search": result.search,
        "--help": result.help,
    }
    lines = [f"{'':<24}seconds   peak MiB"]
    lines += [f"{title:<24}{run.seconds:>7.2f}{run.peak_mib:>11,.0f}" for title, run in rows.items()]
    return "\n".join([*lines, f"{result.images_per_second:,.1f} images/s in the first run"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Wall time and peak memory of the installed command."""
    parser = make_parser(_MODULE, main.__doc__)
    parser.add_argument("--images", type=Path, required=True, help="a folder of images")
    options = parser.parse_args(arguments)

    def measure() -> None:
        refuse_overwriting(options.json, options.force)
        result = measure_speed(options.images, options.model, options.device)
        print(render_table(result))
        write_result(options.json, describe_run(_MODULE, arguments, None), result)

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
