"""The kinds of nearest-neighbour index that `benchmarks.ann` compares, each behind three functions.

build(vectors, folder) writes an index of unit vectors (n, dim) into an empty folder; open(folder) opens it
and returns a search function of queries (m, dim), number of neighbours, and effort; efforts(rows) lists the
search settings to measure, the least thorough first. Each library chooses its own number of threads.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.base import FloatArray, MissingDependency
from indexer.faiss_file import load_faiss, save_faiss
from indexer.faiss_index import build_faiss
from indexer.faiss_library import import_faiss
from indexer.faiss_recipe import TRAINING_ROWS_PER_LIST, count_lists, count_probes
from indexer.faiss_search import search_faiss
from indexer.manifest import FaissRecord

Ids = NDArray[np.int64]
Search = Callable[[FloatArray, int, str], Ids]  # returns ids (m, k), padded with -1
OURS = "fwd2bot"

_BLOCK = 65_536
_INDEX = "index"
_BEAMS = ("32", "128", "512")  # candidates that a graph search keeps
_LINKS, _BUILD_BEAM = 16, 128  # of a graph; its lowest level has twice as many links


class Kind(NamedTuple):
    """One kind of index; `package` is the name of both the module and the pip package it needs."""

    name: str
    package: str
    build: Callable[[FloatArray, Path], None]
    open: Callable[[Path], Search]
    efforts: Callable[[int], Sequence[str]]


def import_package(package: str) -> ModuleType:
    """Import an optional module; raises MissingDependency, with the pip command, if it is not installed."""
    if package == "faiss":
        return import_faiss()  # type: ignore[no-any-return]
    if find_spec(package) is None:
        raise MissingDependency(f"{package} is not installed: pip install {package}")
    return import_module(package)


def cut_blocks(vectors: FloatArray) -> Iterator[tuple[Ids, FloatArray]]:
    """Ids and float32 rows of memory-mapped vectors, in blocks small enough to fit in little memory."""
    for start in range(0, len(vectors), _BLOCK):
        block = np.array(vectors[start : start + _BLOCK], np.float32)
        yield np.arange(start, start + len(block)), block


def build_ours(vectors: FloatArray, folder: Path) -> None:
    """The index that `fwd2bot index` builds, from float16 vectors as it stores them."""

    def blocks() -> Iterator[tuple[Ids, NDArray[np.float16]]]:
        return ((ids, block.astype(np.float16)) for ids, block in cut_blocks(vectors))

    index = build_faiss(blocks, *vectors.shape)
    record = save_faiss(index, folder / "index-000001.faiss", len(vectors))
    (folder / "record.json").write_text(json.dumps([asdict(record), vectors.shape[1]]), encoding="utf-8")


def open_ours(folder: Path) -> Search:
    """Memory-mapped, as `fwd2bot search` opens it; `effort` is ignored, as fwd2bot chooses its own."""
    record, dim = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    index = load_faiss(folder, FaissRecord(**record), dim)

    def search(queries: FloatArray, k: int, effort: str) -> Ids:
        found = [[image_id for image_id, _ in row] for row in search_faiss(index, queries, k)]
        return np.array([row + [-1] * (k - len(row)) for row in found], np.int64).reshape(-1, k)

    return search


def build_faiss_kind(factory: str, vectors: FloatArray, folder: Path) -> None:
    """An index of `faiss.index_factory`; {lists} and {dim} in the factory string are filled in."""
    faiss = import_faiss()
    rows, dim = vectors.shape
    lists = count_lists(rows)
    index = faiss.index_factory(dim, factory.format(lists=lists, dim=dim), faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        count = min(rows, TRAINING_ROWS_PER_LIST * lists)
        places = np.sort(np.random.default_rng(0).choice(rows, count, replace=False))
        index.train(np.array(vectors[places], np.float32))
    for _, block in cut_blocks(vectors):
        index.add(block)
    faiss.write_index(index, str(folder / _INDEX))


def open_faiss_kind(folder: Path) -> Search:
    """Loaded into memory; an effort is a parameter string for `faiss.ParameterSpace`."""
    faiss = import_faiss()
    index = faiss.read_index(str(folder / _INDEX))

    def search(queries: FloatArray, k: int, effort: str) -> Ids:
        if effort:
            faiss.ParameterSpace().set_index_parameters(index, effort)
        return np.asarray(index.search(queries, k)[1], np.int64)

    return search


def build_hnswlib(vectors: FloatArray, folder: Path) -> None:
    """An HNSW graph over float32."""
    index = import_package("hnswlib").Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), ef_construction=_BUILD_BEAM, M=_LINKS)
    for ids, block in cut_blocks(vectors):
        index.add_items(block, ids)
    index.save_index(str(folder / _INDEX))
    (folder / "dim").write_text(str(vectors.shape[1]), encoding="utf-8")


def open_hnswlib(folder: Path) -> Search:
    """Loaded into memory."""
    dim = int((folder / "dim").read_text(encoding="utf-8"))
    index = import_package("hnswlib").Index(space="ip", dim=dim)
    index.load_index(str(folder / _INDEX))

    def search(queries: FloatArray, k: int, effort: str) -> Ids:
        index.set_ef(int(effort))
        return np.asarray(index.knn_query(queries, k=k)[0], np.int64)

    return search


def build_usearch(vectors: FloatArray, folder: Path) -> None:
    """An HNSW graph over float16."""
    import_package("usearch")
    index = import_module("usearch.index").Index(
        ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=_LINKS, expansion_add=_BUILD_BEAM
    )
    for ids, block in cut_blocks(vectors):
        index.add(ids, block)
    index.save(str(folder / _INDEX))


def open_usearch(folder: Path) -> Search:
    """Memory-mapped."""
    import_package("usearch")
    index = import_module("usearch.index").Index.restore(str(folder / _INDEX), view=True)

    def search(queries: FloatArray, k: int, effort: str) -> Ids:
        index.expansion_search = int(effort)
        return np.asarray(index.search(queries, k).keys, np.int64).reshape(len(queries), k)

    return search


def build_lancedb(vectors: FloatArray, folder: Path) -> None:
    """A table on disk with an IVF_PQ index, LanceDB's default kind, of sqrt(n) partitions."""
    rows, dim = vectors.shape
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("vector", pa.list_(pa.float32(), dim))])

    def batches() -> Iterator[pa.RecordBatch]:
        for ids, block in cut_blocks(vectors):
            column = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), dim)
            yield pa.RecordBatch.from_arrays([pa.array(ids), column], schema=schema)

    table = import_package("lancedb").connect(str(folder)).create_table("vectors", batches(), schema=schema)
    table.create_index(metric="dot", num_partitions=round(math.sqrt(rows)), num_sub_vectors=dim // 8)


def open_lancedb(folder: Path) -> Search:
    """On disk; ten candidates for each requested neighbour are reranked by their exact vectors."""
    table = import_package("lancedb").connect(str(folder)).open_table("vectors")

    def search(queries: FloatArray, k: int, effort: str) -> Ids:
        rows: list[list[int]] = [[] for _ in queries]
        asked: Any = queries[0] if len(queries) == 1 else list(queries)
        found = table.search(asked).distance_type("dot").nprobes(int(effort)).refine_factor(10)
        answer = found.limit(k).select(["id", "_distance"]).to_arrow().to_pydict()
        for query, image_id in zip(answer.get("query_index", [0] * k), answer["id"], strict=False):
            rows[query].append(image_id)
        return np.array([row + [-1] * (k - len(row)) for row in rows], np.int64)

    return search


def _no_effort(rows: int) -> Sequence[str]:
    return ("",)


def _beams(rows: int) -> Sequence[str]:
    return _BEAMS


def _faiss_beams(rows: int) -> Sequence[str]:
    return [f"efSearch={beam}" for beam in _BEAMS]


def _probes(rows: int) -> Sequence[str]:
    """A quarter of the lists that fwd2bot probes, as many, and four times as many."""
    ours = count_probes(count_lists(rows))
    return [f"nprobe={probes}" for probes in (max(1, ours // 4), ours, 4 * ours)]


def _refined_probes(rows: int) -> Sequence[str]:
    return [f"{probes},k_factor_rf=8" for probes in _probes(rows)]


def _lance_probes(rows: int) -> Sequence[str]:
    return [str(min(probes, round(math.sqrt(rows)))) for probes in (8, 32, 128)]


def _make_faiss_kind(factory: str, efforts: Callable[[int], Sequence[str]]) -> Kind:
    name = "FAISS " + factory.replace("{lists}", "").replace("{dim}", "")
    return Kind(name, "faiss", partial(build_faiss_kind, factory), open_faiss_kind, efforts)


KINDS = [
    Kind(OURS, "faiss", build_ours, open_ours, _no_effort),
    _make_faiss_kind("Flat", _no_effort),
    _make_faiss_kind("IVF{lists},Flat", _probes),
    _make_faiss_kind("HNSW32", _faiss_beams),
    _make_faiss_kind("RR{dim},IVF{lists},RaBitQfs,RFlat", _refined_probes),
    Kind("hnswlib", "hnswlib", build_hnswlib, open_hnswlib, _beams),
    Kind("usearch", "usearch", build_usearch, open_usearch, _beams),
    Kind("LanceDB", "lancedb", build_lancedb, open_lancedb, _lance_probes),
]
