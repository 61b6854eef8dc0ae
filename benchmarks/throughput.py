"""Whether the model is the bottleneck of an index run, and how time and memory grow with its size.

    python -m benchmarks.throughput --megapixels 1 --count 1000 --json FILE
    python -m benchmarks.throughput --images DIR --scale 1000 10000 100000

compares the rate of `indexer.build.build` with that of the bare encoder on tensors prepared in advance: one
batch after another, and in as many lanes as the pipeline uses; both before and after the run, because the
speed of a shared machine varies. `--scale` runs the installed command on that many drawn photos, and again
with nothing changed; without --images, photos are drawn.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from benchmarks.command import (
    at_least,
    describe_run,
    make_parser,
    refuse_overwriting,
    run_command,
    write_result,
)
from benchmarks.photos import write_photos
from benchmarks.speed import Run, time_command
from encoders.base import Encoder, FloatArray, Fwd2BotError, ImageEmbeddings, PreparedImage
from encoders.load import load_encoder
from indexer.build import BuildSettings, build
from indexer.decode import DEFAULT_MAX_MEGAPIXELS, quiet_pillow, read_photo
from indexer.sources import open_source

_MODULE = "benchmarks.throughput"
_SECONDS = 10.0  # for each timing of the bare encoder
_BATCHES = 4  # of prepared tensors, to cycle through
_DECODED = 200


@dataclass(frozen=True)
class Bottleneck:
    """Images per second, of the bare encoder and of a whole run, and how busy the model was.

    bare: encode_prepared on one thread. bare_lanes: in as many lanes as the pipeline uses. Both are means of
    before and after the run. share: whole over the larger of the two. utilisation: the fraction of time that
    lanes spent encoding. waited_seconds: the remaining time, summed over lanes. decode: images per second
    that one thread reads and prepares.
    """

    images: int
    batch_size: int
    lanes: int
    bare: float
    bare_lanes: float
    whole: float
    share: float
    utilisation: float
    waited_seconds: float
    decode: float


@dataclass(frozen=True)
class ScaleRun:
    """The installed command on `images` drawn photos: the first run, and a second with nothing changed."""

    images: int
    first: Run
    second: Run


@dataclass(frozen=True)
class ThroughputResult:
    """Both measurements; `scale` is empty unless requested."""

    model: str
    bottleneck: Bottleneck
    scale: list[ScaleRun]


class TimedEncoder:
    """An encoder that records how long it spends encoding; for the rest see Encoder."""

    def __init__(self, encoder: Encoder) -> None:
        self.inner = encoder
        self.name, self.fingerprint, self.dim = encoder.name, encoder.fingerprint, encoder.dim
        self.image_size, self.summary_shape = encoder.image_size, encoder.summary_shape
        self.batch_size = encoder.batch_size
        self.busy_seconds = 0.0
        self.opened: list[TimedEncoder] = []

    @contextmanager
    def lanes(self) -> Iterator[Sequence[Encoder]]:
        """The encoder's lanes, each timed separately."""
        with self.inner.lanes() as lanes:
            self.opened = [TimedEncoder(lane) for lane in lanes]
            yield self.opened

    def encode_images(self, images: Sequence[Image.Image]) -> ImageEmbeddings:
        """See Encoder."""
        return self.encode_prepared([self.prepare_image(image) for image in images])

    def prepare_image(self, image: Image.Image) -> PreparedImage:
        """See Encoder."""
        return self.inner.prepare_image(image)

    def encode_prepared(self, prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        """See Encoder."""
        start = time.perf_counter()
        embeddings = self.inner.encode_prepared(prepared)
        self.busy_seconds += time.perf_counter() - start
        return embeddings

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """See Encoder."""
        return self.inner.encode_texts(texts)


def measure_bottleneck(images: Path, encoder: Encoder, batch_size: int | None) -> Bottleneck:
    """Time the bare encoder, reading only, and a whole run over a folder into a temporary index."""
    size = batch_size or encoder.batch_size
    prepared, decode = read_some(images, encoder, max(_DECODED, _BATCHES * size))
    batches = [prepared[start : start + size] for start in range(0, _BATCHES * size, size)]
    batches = [batch for batch in batches if len(batch) == size] or [prepared]
    before = time_bare(encoder, batches)
    timed = TimedEncoder(encoder)
    with TemporaryDirectory(prefix="fwd2bot-throughput-") as place:
        start = time.perf_counter()
        report = build(images, Path(place) / "index", timed, BuildSettings(batch_size=batch_size))
        seconds = time.perf_counter() - start
    bare, bare_lanes = (
        (early + late) / 2 for early, late in zip(before, time_bare(encoder, batches), strict=True)
    )
    busy, total = sum(lane.busy_seconds for lane in timed.opened), len(timed.opened) * seconds
    return Bottleneck(
        images=report.indexed,
        batch_size=size,
        lanes=len(timed.opened),
        bare=bare,
        bare_lanes=bare_lanes,
        whole=report.indexed / seconds,
        share=report.indexed / seconds / max(bare, bare_lanes),
        utilisation=busy / total,
        waited_seconds=total - busy,
        decode=decode,
    )


def read_some(images: Path, encoder: Encoder, count: int) -> tuple[list[PreparedImage], float]:
    """Read and prepare images on this thread; returns the prepared images, and images per second."""
    source = open_source(images)
    files = list(islice(source.find().files, count))
    with quiet_pillow():
        start = time.perf_counter()
        photos = [read_photo(source, file, encoder.image_size, DEFAULT_MAX_MEGAPIXELS) for file in files]
        prepared = [encoder.prepare_image(photo.image) for photo in photos if photo.image is not None]
        seconds = time.perf_counter() - start
    if not prepared:
        raise Fwd2BotError(f"{images} holds no image that can be read: name another folder.")
    return prepared, len(files) / seconds


def time_bare(encoder: Encoder, batches: Sequence[Sequence[PreparedImage]]) -> tuple[float, float]:
    """Images per second on prepared batches, on one thread, and in as many lanes as the encoder has."""
    alone = time_batches(encoder, batches, _SECONDS)
    with encoder.lanes() as lanes, ThreadPoolExecutor(len(lanes)) as pool:
        return alone, sum(pool.map(lambda lane: time_batches(lane, batches, _SECONDS), lanes))


def time_batches(encoder: Encoder, batches: Sequence[Sequence[PreparedImage]], seconds: float) -> float:
    """Images per second on prepared batches, cycled for `seconds` after one warm-up batch."""
    encoder.encode_prepared(batches[0])
    start, done, number = time.perf_counter(), 0, 0
    while (passed := time.perf_counter() - start) < seconds:
        batch = batches[number % len(batches)]
        encoder.encode_prepared(batch)
        done, number = done + len(batch), number + 1
    return done / passed


def measure_scale(count: int, megapixels: float, model: str, device: str) -> ScaleRun:
    """Index `count` drawn photos with the installed command, twice."""
    with TemporaryDirectory(prefix="fwd2bot-throughput-") as place:
        photos, index = Path(place) / "photos", str(Path(place) / "index")
        write_photos(photos, count, megapixels)
        command = ("index", str(photos), "--index", index, "--model", model, "--device", device)
        return ScaleRun(count, time_command(*command), time_command(*command))


def render_table(result: ThroughputResult) -> str:
    """The bottleneck's figures, each on a labelled line, then a line for each scale run."""
    figures = result.bottleneck
    lines = [
        f"batches of {figures.batch_size}, {figures.lanes} at a time; images/s:",
        f"bare encoder, one at a time   {figures.bare:>8,.1f}",
        f"bare encoder, in its lanes    {figures.bare_lanes:>8,.1f}",
        f"whole run, {figures.images:>9,} images   {figures.whole:>8,.1f}   {figures.share:.1%} of it",
        f"one thread reads and prepares {figures.decode:>8,.1f}",
        f"lanes computed {figures.utilisation:.1%} of the time, and waited {figures.waited_seconds:.1f} s",
    ]
    for run in result.scale:
        rate = run.images / run.first.seconds
        lines.append(f"{run.images:>9,} images: {rate:,.1f} images/s, peak {run.first.peak_mib:,.0f} MiB;")
        lines[-1] += f" unchanged {run.second.seconds:.2f} s, peak {run.second.peak_mib:,.0f} MiB"
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure whether the model is the bottleneck, and how time and memory grow."""
    parser = make_parser(_MODULE, main.__doc__)
    parser.add_argument("--images", type=Path, help="a folder of images; else photos are drawn")
    parser.add_argument(
        "--count", type=at_least(1), default=1000, help="how many to draw (default: %(default)s)"
    )
    parser.add_argument(
        "--megapixels", type=float, default=1.0, help="of a drawn photo (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=at_least(1), help="images at once; else what the encoder finds best"
    )
    parser.add_argument(
        "--scale", type=at_least(1), nargs="*", default=[], metavar="N", help="sizes of drawn folders"
    )
    options = parser.parse_args(arguments)

    def measure() -> None:
        refuse_overwriting(options.json, options.force)
        # Before the model is loaded, because the parent's memory would count towards the child's peak.
        scale = [
            measure_scale(count, options.megapixels, options.model, options.device) for count in options.scale
        ]
        encoder = load_encoder(options.model, options.device)
        with TemporaryDirectory(prefix="fwd2bot-throughput-") as place:
            images = options.images or Path(place)
            if options.images is None:
                write_photos(images, options.count, options.megapixels)
            result = ThroughputResult(
                options.model, measure_bottleneck(images, encoder, options.batch_size), scale
            )
        print(render_table(result))
        write_result(options.json, describe_run(_MODULE, arguments, encoder), result)

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
