"""Shared by benchmark commands: options, one-sentence errors, and results that record how they were made."""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.datasets import CaptionedImage, keep_present, name_split, parse_dataset
from benchmarks.embedding import describe_arithmetic
from encoders.base import DEFAULT_ENCODER, Encoder, Fwd2BotError
from indexer.images import describe_error

_VERSIONED = (
    *("fwd2bot", "torch", "transformers", "numpy", "pillow", "pyarrow", "faiss-cpu", "faiss-gpu"),
    *("hnswlib", "usearch", "lancedb", "open_clip_torch", "sentence-transformers"),
    *("mteb", "nltk", "pycocoevalcap"),
)


def at_least(least: int) -> Callable[[str], int]:
    """A type for argparse options: a whole number of at least `least`."""

    def read_count(text: str) -> int:
        try:
            count = int(text)
        except ValueError:
            count = least - 1
        if count < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        return count

    return read_count


def make_result_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every command that writes a result."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here as well")
    parser.add_argument("--force", action="store_true", help="replace a result file that is already there")
    return parser


def make_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every command that runs a model and writes a result."""
    parser = make_result_parser(module, description)
    parser.add_argument(
        "--model", default=DEFAULT_ENCODER, help="as in `fwd2bot index --model` (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return parser


@dataclass(frozen=True)
class SplitRecord:
    """The annotated split that a result is about; `missing` photos were left out with their captions."""

    dataset: str
    split: str
    images: int
    captions: int
    missing: int


def add_dataset_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the options that `read_split` reads."""
    parser.add_argument(
        "--dataset",
        type=Path,
        required=required,
        help="a .json of Karpathy or NoCaps, a table (.csv, .tsv, .jsonl, .parquet), or .tar shards",
    )
    parser.add_argument("--images", type=Path, help="the folder of the photos (default: where --dataset is)")
    parser.add_argument("--split", help='or "all" (default: test, where there are splits)')
    parser.add_argument(
        "--allow-missing", action="store_true", help="go on without photos that are not there"
    )


def read_split(options: argparse.Namespace) -> tuple[list[CaptionedImage], SplitRecord]:
    """Read the split that the options name, and its record for the result."""
    images_dir = options.images or options.dataset.parent
    described = parse_dataset(options.dataset, images_dir, options.split)
    images = keep_present(described, images_dir, options.allow_missing)
    return images, SplitRecord(
        dataset=options.dataset.name,
        split=options.split or name_split(described),
        images=len(images),
        captions=sum(len(image.captions) for image in images),
        missing=len(described) - len(images),
    )


def describe_missing(count: int) -> str:
    """A note on missing files, to follow the number of those present; empty if none is missing."""
    return f" ({count:,} more missing)" if count else ""


def run_command(command: Callable[[], None]) -> int:
    """Run a benchmark and return its exit code: a foreseen error prints one line to stderr and returns 1."""
    try:
        command()
    except Fwd2BotError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename}: " if error.filename else "", describe_error(error), sep="", file=sys.stderr)
        return 1
    return 0


def refuse_overwriting(path: Path | None, force: bool) -> None:
    """Raise Fwd2BotError, before hours of work, if a result file exists already or cannot be written."""
    if path is None:
        return
    above = next(each for each in path.absolute().parents if each.exists())
    if path.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        taken = path if path.is_dir() else above
        raise Fwd2BotError(f"No file {path} can be written, for {taken} is in the way: name another.")
    if path.exists() and not force:
        raise Fwd2BotError(f"{path} already holds a result: name another file, or replace it with --force.")


def describe_run(
    module: str, arguments: Sequence[str] | None, encoder: Encoder | None, seed: int | None = None
) -> dict[str, Any]:
    """How a result was made: command, date, seed, model, versions and machine."""
    given = sys.argv[1:] if arguments is None else arguments
    described = encoder and {
        "name": encoder.name,
        "fingerprint": encoder.fingerprint,
        "dim": encoder.dim,
        "summary_shape": encoder.summary_shape,
        **describe_arithmetic(encoder),
    }
    return {
        "benchmark": module.removeprefix("benchmarks."),
        "command": shlex.join(["python", "-m", module, *given]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "encoder": described,
        "versions": {"python": platform.python_version()} | _find_versions(),
        "machine": {"processor": _name_processor(), "system": platform.platform(), "cores": os.cpu_count()},
    }


def write_result(path: Path | None, run: dict[str, Any], result: object) -> None:
    """Write a result (a dataclass or plain values) with the description of its run; path None: do nothing."""
    if path is None:
        return
    plain = asdict(result) if is_dataclass(result) and not isinstance(result, type) else result
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(run | {"result": plain}, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
    print(f"written to {path}", file=sys.stderr)


def _find_versions() -> dict[str, str]:
    versions = {}
    for name in _VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _name_processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # only on Linux; elsewhere Python says a little
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
