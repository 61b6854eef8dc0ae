"""Kinds of nearest-neighbour index compared: recall, speed, size and memory.

    python -m benchmarks.ann --rows 100000 1000000 --dim 256 512 --json FILE
    python -m benchmarks.ann --index DIR --json FILE

measures on clustered synthetic embeddings (see `benchmarks.scale`), or on those of an index, some of which
are held out as queries. Every kind is built and searched in separate processes. recall@10 is the fraction of
the exact ten nearest (float32) that are found. Memory is the peak increase of resident memory, mapped pages
included, while a process opens the index and answers queries one by one. Linux only: memory is read from
/proc.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.ann_kinds import KINDS, OURS, Ids, Kind, Search, cut_blocks, import_package
from benchmarks.ann_results import (
    AnnResult,
    CollectionResult,
    KindResult,
    Point,
    find_defeats,
    render_collection,
)
from benchmarks.command import (
    at_least,
    describe_run,
    make_result_parser,
    refuse_overwriting,
    run_command,
    write_result,
)
from benchmarks.scale import Collection, forget_peak, read_memory, run_alone
from encoders.base import FloatArray, Fwd2BotError, MissingDependency
from indexer.manifest import read_manifest
from indexer.table import EmbeddingTable, read_vectors

_MODULE = "benchmarks.ann"
_K = 10
_BATCH = 256
_QUERIES = 2 * _BATCH
_HELD_OUT_SHARE = 0.1  # the largest fraction of a real index to hold out as queries
_BLOCK = 65_536
_BASE, _ASKED, _TRUTH = "base.npy", "queries.npy", "truth.npy"


def write_synthetic(work: Path, rows: int, dim: int, seed: int) -> None:
    """Write clustered vectors, and queries from the same distribution."""
    collection = Collection(rows, dim, seed)
    base = np.lib.format.open_memmap(work / _BASE, "w+", np.float32, (rows, dim))
    for block, start in enumerate(range(0, rows, _BLOCK)):
        count = min(_BLOCK, rows - start)
        base[start : start + count] = collection.draw(block, count)
    base.flush()
    np.save(work / _ASKED, collection.draw(1 << 40, _QUERIES))


def write_stored(work: Path, index_dir: Path) -> None:
    """Write the embeddings of an index, with a random subset held out as queries."""
    living = EmbeddingTable.open(index_dir).ids
    blocks = read_vectors(index_dir, read_manifest(index_dir), living)
    vectors = np.concatenate([block.astype(np.float32) for _, block in blocks])
    count = min(_QUERIES, int(_HELD_OUT_SHARE * len(vectors)))
    if not count or len(vectors) - count < _K:
        raise Fwd2BotError(f"{index_dir} holds {len(vectors)} images: give an index of a hundred or more.")
    order = np.random.default_rng(0).permutation(len(vectors))
    np.save(work / _ASKED, vectors[order[:count]])
    np.save(work / _BASE, vectors[np.sort(order[count:])])


def write_truth(work: Path) -> None:
    """Write the ids of the exact ten nearest neighbours of every query, by brute force."""
    queries, base = np.load(work / _ASKED), np.load(work / _BASE, mmap_mode="r")
    scores, ids = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for block_ids, block in cut_blocks(base):
        scores = np.concatenate([scores, queries @ block.T], axis=1)
        ids = np.concatenate([ids, np.broadcast_to(block_ids, (len(queries), len(block_ids)))], axis=1)
        best = np.argpartition(-scores, _K - 1, axis=1)[:, :_K]
        scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
    np.save(work / _TRUTH, ids)


def find_recall(found: Ids, truth: Ids) -> float:
    """The fraction of the true neighbours (n, k) that are among those found (n, k), in any order."""
    return float(
        np.mean([np.isin(row, true).sum() / len(true) for row, true in zip(found, truth, strict=True)])
    )


def build_kind(kind: Kind, work: Path, folder: Path) -> tuple[float, float]:
    """Seconds to build and write, and peak resident memory in MiB."""
    import_package(kind.package)
    vectors = np.load(work / _BASE, mmap_mode="r")
    start = time.perf_counter()
    kind.build(vectors, folder)
    return time.perf_counter() - start, read_memory("VmHWM")


def search_kind(kind: Kind, work: Path, folder: Path, seconds: float) -> tuple[float, float, list[Point]]:
    """Seconds to open, peak MiB, and a point for each effort.

    seconds: time limit of each timing, of single queries and of batches. The peak covers opening, and single
    queries at the first effort.
    """
    import_package(kind.package)
    queries, truth = np.load(work / _ASKED), np.load(work / _TRUTH)
    rows = np.load(work / _BASE, mmap_mode="r").shape[0]
    before = read_memory("VmRSS")
    forget_peak()
    start = time.perf_counter()
    search = kind.open(folder)
    opened = time.perf_counter() - start
    search(queries[:1], _K, kind.efforts(rows)[0])
    points = []
    peak = 0.0
    for effort in kind.efforts(rows):
        alone = time_queries(search, np.split(queries, len(queries)), effort, seconds)
        peak = peak or read_memory("VmHWM") - before
        batches = np.split(queries, range(_BATCH, len(queries), _BATCH))
        batched = time_queries(search, batches, effort, seconds)
        found = np.concatenate([search(batch, _K, effort) for batch in batches])
        points.append(Point(effort, find_recall(found, truth), alone, batched))
    return opened, peak, points


def time_queries(search: Search, batches: Sequence[FloatArray], effort: str, seconds: float) -> float:
    """Queries per second over the batches, after a warm-up batch; stops after `seconds` or one round."""
    search(batches[0], _K, effort)
    start, done = time.perf_counter(), 0
    for batch in batches:
        search(batch, _K, effort)
        done += len(batch)
        if time.perf_counter() - start > seconds:
            break
    return done / (time.perf_counter() - start)


def measure_kind(kind: Kind, work: Path, seconds: float) -> KindResult:
    """Build one kind of index and search it."""
    with TemporaryDirectory(prefix="index-", dir=work) as place:
        folder = Path(place)
        build_seconds, build_peak = run_alone(build_kind, kind, work, folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        opened, search_peak, points = run_alone(search_kind, kind, work, folder, seconds)
    rows = np.load(work / _BASE, mmap_mode="r").shape[0]
    return KindResult(kind.name, build_seconds, build_peak, size / rows, opened, search_peak, points)


def measure_collection(work: Path, source: str, chosen: Sequence[Kind], seconds: float) -> CollectionResult:
    """Measure the chosen kinds on the vectors written to `work`, one after another."""
    run_alone(write_truth, work)
    kinds, skipped = list[KindResult](), dict[str, str]()
    for kind in chosen:
        try:
            kinds.append(measure_kind(kind, work, seconds))
        except MissingDependency as error:
            skipped[kind.name] = str(error)
        except BrokenProcessPool:
            skipped[kind.name] = "its process was killed: most likely it needs more memory than there is"
        print(f"{source}: {kind.name} {skipped.get(kind.name, 'done')}", file=sys.stderr)
    rows, dim = np.load(work / _BASE, mmap_mode="r").shape
    queries = len(np.load(work / _ASKED))
    return CollectionResult(source, rows, dim, queries, kinds, skipped, find_defeats(kinds, OURS))


def plan_collections(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """The names of the collections to measure on, each with a function that writes it into a folder."""
    if options.index:
        yield f"embeddings of {options.index}", partial(write_stored, index_dir=options.index)
        return
    for rows in options.rows:
        for dim in options.dim:
            words = f"{rows:,} clustered vectors of {dim}"
            yield words, partial(write_synthetic, rows=rows, dim=dim, seed=options.seed)


def choose_kinds(names: Sequence[str]) -> list[Kind]:
    """The kinds with these names, or all if no name is given."""
    return [kind for kind in KINDS if not names or kind.name in names]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare recall, speed, size and memory of kinds of nearest-neighbour index."""
    parser = make_result_parser(_MODULE, main.__doc__)
    parser.add_argument("--rows", type=at_least(_K), nargs="+", default=[100_000])
    parser.add_argument("--dim", type=at_least(1), nargs="+", default=[256])
    parser.add_argument("--index", type=Path, metavar="DIR", help="an index folder: its embeddings instead")
    parser.add_argument(
        "--kinds", nargs="+", default=[], choices=[kind.name for kind in KINDS], metavar="KIND"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="for each timing (default: %(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="where vectors go (default: a temporary folder)"
    )
    options = parser.parse_args(arguments)

    def measure() -> None:
        refuse_overwriting(options.json, options.force)
        results = list[CollectionResult]()
        for source, write_vectors in plan_collections(options):
            with TemporaryDirectory(prefix="fwd2bot-ann-", dir=options.work) as work:
                write_vectors(Path(work))
                chosen = choose_kinds(options.kinds)
                results.append(measure_collection(Path(work), source, chosen, options.seconds))
            print(render_collection(results[-1]))
        write_result(options.json, describe_run(_MODULE, arguments, None, options.seed), AnnResult(results))

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
