"""The cost of writing, building and searching an index of ten million images.

    python -m benchmarks.scale --rows 10000000 --dim 256 --work DIR --json FILE

writes clustered synthetic embeddings into an index as `fwd2bot index` does, builds the FAISS file, and
searches it memory-mapped: each step in a separate process, to get its own memory peak. Recall is relative to
exact search over all vectors of the parts. Linux only: memory is read from /proc.
"""

import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np

from benchmarks.command import (
    at_least,
    describe_run,
    make_result_parser,
    refuse_overwriting,
    run_command,
    write_result,
)
from benchmarks.stored_forms import refuse_used_folder
from encoders.base import FloatArray, Fwd2BotError, ImageEmbeddings
from indexer.columns import FileRow
from indexer.faiss_search import search_faiss
from indexer.lock import lock_index
from indexer.manifest import EncoderRecord, Manifest, read_clock, read_manifest
from indexer.table import read_vectors
from indexer.writer import ROWS_PER_PART, IndexWriter
from retrieval.gallery import Gallery, open_neighbours

_MODULE = "benchmarks.scale"
_ROWS_PER_CLUSTER = 1000
_SPREAD = 0.6  # standard deviation within a cluster, relative to that between clusters
_QUERIES = 1000
_EXACT_QUERIES = 200
_BATCH = 256
_K = 10

Result = TypeVar("Result")


@dataclass(frozen=True)
class Collection:
    """Synthetic embeddings: clusters on a sphere, with unequal variance by direction, as learned ones have.

    As in learned embeddings, these directions are not the coordinate axes.
    """

    rows: int
    dim: int
    seed: int

    def draw(self, block: int, count: int) -> FloatArray:
        """Unit vectors (count, dim) of one block, determined by seed and block."""
        random = np.random.default_rng([self.seed, 1, block])
        vectors = self.centres[random.integers(len(self.centres), size=count)]
        vectors += np.float32(_SPREAD) * random.standard_normal((count, self.dim), np.float32)
        vectors = vectors @ self.directions
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)

    @cached_property
    def centres(self) -> FloatArray:
        """The cluster centres (n, dim), before directions are scaled."""
        clusters = max(1, self.rows // _ROWS_PER_CLUSTER)
        return np.random.default_rng([self.seed, 0]).standard_normal((clusters, self.dim), np.float32)

    @cached_property
    def directions(self) -> FloatArray:
        """Orthogonal rows (dim, dim) with lengths 1, 1 / sqrt(2), 1 / sqrt(3), ..."""
        square = np.random.default_rng([self.seed, 2]).standard_normal((self.dim, self.dim))
        lengths = np.arange(1, self.dim + 1) ** -0.5
        return np.asarray(np.linalg.qr(square)[0] * lengths[:, None], np.float32)


@dataclass(frozen=True)
class Writing:
    """The cost of writing parts and manifest."""

    seconds: float
    part_mib: float


@dataclass(frozen=True)
class Building:
    """The cost of building and writing the FAISS file; the peak is of resident memory."""

    seconds: float
    peak_mib: float
    faiss_mib: float


@dataclass(frozen=True)
class Searching:
    """The cost of opening the index, and of queries one at a time and in batches.

    peak_mib: peak resident memory during single queries, including file pages, which the system can reclaim.
    own_mib: anonymous memory after them, without file pages. answers_per_second: single queries, including
    looking up the paths of their hits.
    """

    open_seconds: float
    peak_mib: float
    own_mib: float
    queries_per_second: float
    batched_queries_per_second: float
    answers_per_second: float


@dataclass(frozen=True)
class ScaleResult:
    """One collection, written, built and searched."""

    collection: Collection
    writing: Writing
    building: Building
    searching: Searching
    recall_at_10: float


def describe_collection(collection: Collection) -> Manifest:
    """The manifest of an index without parts, whose encoder stands for the random generator."""
    fingerprint = f"drawn-{collection.rows}-{collection.dim}-{collection.seed}"
    encoder = EncoderRecord("drawn", fingerprint, collection.dim, summary_shape=None)
    return Manifest("..", encoder, "none", created=read_clock(), updated=read_clock())


def draw_queries(collection: Collection) -> FloatArray:
    """Unit vectors (n, dim) from the collection's distribution that are not in it."""
    return collection.draw(1 << 40, _QUERIES)


def write_parts(index_dir: Path, collection: Collection) -> Writing:
    """Write the parts, each of the size that `fwd2bot index` merges parts to."""
    start = time.perf_counter()
    with lock_index(index_dir):
        writer = IndexWriter(index_dir, describe_collection(collection))
        for first in range(0, collection.rows, ROWS_PER_PART):
            count = min(ROWS_PER_PART, collection.rows - first)
            vectors = collection.draw(first // ROWS_PER_PART, count)
            names = (f"{number // 1000:05d}/{number:08d}.jpg" for number in range(first, first + count))
            rows = [
                FileRow(name, 1, 0, f"{number:032x}", 1, 1, "ok", "")
                for number, name in enumerate(names, first)
            ]
            writer.append(rows, ImageEmbeddings(vectors, None))
        writer.commit()
    seconds = time.perf_counter() - start
    return Writing(seconds, sum(part.size for part in writer.manifest.parts) / 2**20)


def build_neighbours(index_dir: Path) -> Building:
    """Build the FAISS file, as is done at the end of an index run."""
    start = time.perf_counter()
    with lock_index(index_dir):
        writer = IndexWriter(index_dir, read_manifest(index_dir))
        writer.refresh_faiss()
    assert writer.manifest.faiss is not None
    return Building(time.perf_counter() - start, read_memory("VmHWM"), writer.manifest.faiss.size / 2**20)


def search_neighbours(index_dir: Path, collection: Collection) -> Searching:
    """Open the index and run every query, one at a time and in batches."""
    queries = draw_queries(collection)
    start = time.perf_counter()
    manifest = read_manifest(index_dir)
    neighbours = open_neighbours(index_dir, manifest)
    opened = time.perf_counter() - start
    forget_peak()
    alone = _time_rate(lambda query: search_faiss(neighbours, query, _K), np.split(queries, len(queries)))
    peak, own = read_memory("VmHWM"), read_memory("RssAnon")
    batches = np.split(queries, range(_BATCH, len(queries), _BATCH))
    batched = _time_rate(lambda batch: search_faiss(neighbours, batch, _K), batches)
    gallery = Gallery(index_dir, manifest, neighbours)
    answers = _time_rate(lambda batch: gallery.search_vectors(batch, _K), np.split(queries[:_BATCH], _BATCH))
    return Searching(opened, peak, own, alone, batched, answers)


def _time_rate(search: Callable[[FloatArray], object], batches: Sequence[FloatArray]) -> float:
    """Queries per second."""
    start = time.perf_counter()
    for batch in batches:
        search(batch)
    return sum(len(batch) for batch in batches) / (time.perf_counter() - start)


def measure_recall(index_dir: Path, collection: Collection) -> float:
    """The fraction of the exact ten nearest, over all vectors of the parts, that a search finds."""
    queries = draw_queries(collection)[:_EXACT_QUERIES]
    manifest = read_manifest(index_dir)
    scores = np.full((len(queries), _K), -np.inf, np.float32)
    ids = np.full((len(queries), _K), -1)
    for block_ids, vectors in read_vectors(index_dir, manifest):
        scores = np.concatenate([scores, queries @ vectors.astype(np.float32).T], axis=1)
        ids = np.concatenate([ids, np.broadcast_to(block_ids, (len(queries), len(block_ids)))], axis=1)
        best = np.argpartition(-scores, _K - 1, axis=1)[:, :_K]
        scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
    found = search_faiss(open_neighbours(index_dir, manifest), queries, _K)
    hits = (
        len(set(row) & {image_id for image_id, _ in ours})
        for row, ours in zip(ids.tolist(), found, strict=True)
    )
    return sum(hits) / ids.size


def read_memory(field: str) -> float:
    """A field of /proc/self/status in MiB: VmHWM, VmRSS or RssAnon."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise Fwd2BotError(f"this system does not tell {field}: run the benchmark on Linux")


def forget_peak() -> None:
    """Reset VmHWM to the current resident memory; sampling VmRSS instead would miss short peaks."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise Fwd2BotError(f"this system forgets no peak of memory ({error}): use Linux") from error


def measure_scale(index_dir: Path, collection: Collection) -> ScaleResult:
    """Write, build and search, each in a fresh process."""
    writing = run_alone(write_parts, index_dir, collection)
    print(f"written in {writing.seconds:,.0f} s", file=sys.stderr)
    building = run_alone(build_neighbours, index_dir)
    print(f"built in {building.seconds:,.0f} s", file=sys.stderr)
    searching = run_alone(search_neighbours, index_dir, collection)
    recall = run_alone(measure_recall, index_dir, collection)
    return ScaleResult(collection, writing, building, searching, recall)


def run_alone(step: Callable[..., Result], *arguments: object) -> Result:
    """Run a step in a separate process, which releases all its memory when it ends."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(step, *arguments).result()


def render_result(result: ScaleResult) -> str:
    """One line for each step."""
    writing, building, searching = result.writing, result.building, result.searching
    return "\n".join(
        [
            f"{result.collection.rows:,} embeddings of {result.collection.dim} dimensions",
            f"write    {writing.seconds:,.0f} s, parts of {writing.part_mib:,.0f} MiB",
            f"build    {building.seconds:,.0f} s, peak {building.peak_mib:,.0f} MiB, "
            f"a file of {building.faiss_mib:,.0f} MiB",
            f"open     {searching.open_seconds:.2f} s",
            f"peak     {searching.peak_mib:,.0f} MiB in {_QUERIES:,} queries alone, pages of files included; "
            f"{searching.own_mib:,.0f} its own after them",
            f"search   {searching.queries_per_second:,.0f} queries/s alone, "
            f"{searching.batched_queries_per_second:,.0f} in batches of {_BATCH}, "
            f"{searching.answers_per_second:,.0f} alone with the paths of the hits",
            f"recall   {result.recall_at_10:.4f} of the ten nearest",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure time, memory and recall of an index of many synthetic embeddings."""
    parser = make_result_parser(_MODULE, main.__doc__)
    parser.add_argument("--rows", type=at_least(_K), default=10_000_000)
    parser.add_argument("--dim", type=at_least(1), default=256)
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="keep the index in DIR/index (default: a temporary folder)"
    )
    options = parser.parse_args(arguments)

    def measure() -> None:
        refuse_overwriting(options.json, options.force)
        refuse_used_folder(options.work and options.work / "index")
        collection = Collection(options.rows, options.dim, options.seed)
        with (
            nullcontext(options.work) if options.work else TemporaryDirectory(prefix="fwd2bot-scale-") as work
        ):
            result = measure_scale(Path(work) / "index", collection)
        print(render_result(result))
        write_result(options.json, describe_run(_MODULE, arguments, None, options.seed), result)

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
