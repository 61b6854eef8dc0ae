"""Encoders compared in one harness: images and texts per second, dimensions, memory, and bytes stored.

    python -m benchmarks.side_by_side --models tiny lvlm:DIR st:DIR --json FILE
    python -m benchmarks.side_by_side --models tiny --place DIR --json FILE

accepts any model that `fwd2bot index --model` accepts, and runs each in a separate process. Pictures are
scenes drawn at the model's input size, so decoding is not measured, but preprocessing is. The second form
adds the open_clip model that `benchmarks.peers.race` runs, in the environment that it creates in that folder,
with random weights: fair for speed, but meaningless for quality, so the table marks such models.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.command import describe_run, make_result_parser, refuse_overwriting, run_command, write_result
from benchmarks.peers.contenders import Fwd2bot, prepare_ours
from benchmarks.peers.environments import module_script
from benchmarks.scale import read_memory
from benchmarks.scenes import draw_scene, make_scene, unique_caption
from benchmarks.text_table import render_rows
from encoders.base import DEFAULT_ENCODER, Fwd2BotError
from encoders.load import load_encoder

_MODULE = "benchmarks.side_by_side"
_BATCHES = (1, 4, 16, 64)
_SERIES = 7
_RIVAL = "rclip-3.3.0"  # its CLIP model is added
_CHILD = """
from benchmarks.side_by_side import print_figures
sys.exit(print_figures(sys.argv[1], sys.argv[2], float(sys.argv[3])))
"""

Input = TypeVar("Input")


@dataclass(frozen=True)
class EncoderFigures:
    """The figures of one encoder. images_per_second: by batch size. texts_per_second: in batches of 64.

    bytes_per_image: as stored, a float16 embedding, and int8 tokens with their scales. peak_mib: peak
    resident memory. summary_shape: None if it keeps no tokens, and so cannot answer from the index.
    """

    model: str
    fingerprint: str
    dim: int
    summary_shape: tuple[int, int] | None
    bytes_per_image: int
    load_seconds: float
    images_per_second: dict[int, float]
    texts_per_second: float
    peak_mib: float


@dataclass(frozen=True)
class SideBySideResult:
    """random: names of the models with random weights. skipped: why each model that did not run failed."""

    encoders: list[EncoderFigures]
    random: list[str]
    skipped: dict[str, str]


def measure_encoder(model: str, device: str, seconds: float) -> EncoderFigures:
    """Load a model, and time it for `seconds` at each batch size."""
    start = time.perf_counter()
    encoder = load_encoder(model, device)
    loaded = time.perf_counter() - start
    scenes = [make_scene(_SERIES, number) for number in range(max(_BATCHES))]
    pictures = [draw_scene(scene, encoder.image_size) for scene in scenes]
    captions = [unique_caption(scene) for scene in scenes]
    shape = encoder.summary_shape
    return EncoderFigures(
        model=model,
        fingerprint=encoder.fingerprint,
        dim=encoder.dim,
        summary_shape=shape,
        bytes_per_image=2 * encoder.dim + (shape[0] * (shape[1] + 4) if shape else 0),
        load_seconds=loaded,
        images_per_second={
            size: time_rate(encoder.encode_images, pictures[:size], seconds) for size in _BATCHES
        },
        texts_per_second=time_rate(encoder.encode_texts, captions, seconds),
        peak_mib=read_memory("VmHWM"),
    )


def time_rate(encode: Callable[[list[Input]], object], inputs: Sequence[Input], seconds: float) -> float:
    """Inputs per second, encoding all of them as one batch repeatedly, after one warm-up batch."""
    batch = list(inputs)
    encode(batch)
    start, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds or not done:
        encode(batch)
        done += len(batch)
    return done / passed


def print_figures(model: str, device: str, seconds: float) -> int:
    """Entry point of the child process: prints one model's figures as JSON, on the last line of stdout."""

    def measure() -> None:
        print(json.dumps(asdict(measure_encoder(model, device, seconds))))

    return run_command(measure)


def measure_in_child(model: str, device: str, seconds: float, place: Fwd2bot | None = None) -> EncoderFigures:
    """Measure one model in a separate process, and in the environment of `place` if given.

    Raises Fwd2BotError with the process's own message if it fails.
    """
    python = Path(sys.executable) if place is None else place.python
    variables = {} if place is None else place.variables(Path())
    command = module_script(python, _CHILD, model, device, str(seconds))
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise Fwd2BotError(said[-1])
    figures = json.loads(done.stdout.splitlines()[-1])
    shape, rates = figures.pop("summary_shape"), figures.pop("images_per_second")
    return EncoderFigures(
        **figures,
        summary_shape=None if shape is None else (shape[0], shape[1]),
        images_per_second={int(size): rate for size, rate in rates.items()},
    )


def measure_models(
    models: Sequence[str], random: Mapping[str, Fwd2bot], device: str, seconds: float
) -> SideBySideResult:
    """Measure one model after another, skipping those that cannot run.

    random: models with random weights, each with the environment that it runs in. Raises Fwd2BotError if no
    model can run.
    """
    encoders, skipped = list[EncoderFigures](), dict[str, str]()
    for model in (*models, *random):
        try:
            encoders.append(measure_in_child(model, device, seconds, random.get(model)))
        except Fwd2BotError as error:
            skipped[model] = str(error)
        print(f"{model}: {skipped.get(model, 'done')}", file=sys.stderr)
    if not encoders:
        raise Fwd2BotError(f"none of {', '.join(models)} could run: {next(iter(skipped.values()))}")
    return SideBySideResult(encoders, list(random), skipped)


def render_table(result: SideBySideResult) -> str:
    """A line for each encoder, and one for each that was skipped."""
    header = ["model", "weights", "dim", "keeps", "load s", "MiB", "texts/s"]
    header += [f"images/s by {size}" for size in _BATCHES]
    rows = [_render_encoder(figures, figures.model in result.random) for figures in result.encoders]
    lines = [render_rows(header, rows)]
    lines += [f"skipped: {model}: {reason}" for model, reason in result.skipped.items()]
    return "\n".join(lines)


def _render_encoder(figures: EncoderFigures, random: bool) -> list[str]:
    return [
        figures.model,
        "random" if random else "trained",
        str(figures.dim),
        f"{figures.bytes_per_image:,} B" + (", answers" if figures.summary_shape else ""),
        f"{figures.load_seconds:.1f}",
        f"{figures.peak_mib:,.0f}",
        f"{figures.texts_per_second:,.1f}",
        *(f"{figures.images_per_second[size]:,.1f}" for size in _BATCHES),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare speed, size and memory of encoders in one harness."""
    parser = make_result_parser(_MODULE, main.__doc__)
    parser.add_argument("--models", nargs="+", default=[DEFAULT_ENCODER], metavar="MODEL")
    parser.add_argument(
        "--place", type=Path, metavar="DIR", help="of a race, whose CLIP model is to be added"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=5.0, help="for each timing (default: %(default)s)")
    options = parser.parse_args(arguments)

    def measure() -> None:
        refuse_overwriting(options.json, options.force)
        ours = options.place and prepare_ours(options.place.resolve(), _RIVAL)
        random = {ours.model: ours} if ours else {}
        result = measure_models(options.models, random, options.device, options.seconds)
        print(render_table(result))
        write_result(options.json, describe_run(_MODULE, arguments, None, _SERIES), result)

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
