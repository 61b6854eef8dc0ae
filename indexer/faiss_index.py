"""The FAISS file: nearest neighbours by inner product, derived from the parts and rebuilt from them at will.

Exact in float16 up to EXACT_LIMIT images. Above that, measured over a million vectors of 256 dimensions,
inverted lists of RaBitQ codes with a float16 refinement kept 97% of the exact ten at a hundred times the
speed. HNSW cannot delete. The one place where faiss is imported.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.base import FloatArray, IndexDamaged, MissingDependency

from .durable import digest_file, replace_durably
from .manifest import FaissRecord, Manifest

EXACT_LIMIT = 200_000
PROBES = 32
REFINE_FACTOR = 8
TRAINING_ROWS_PER_LIST = 64
GPU_QUERIES = 256
GPU_MOST_RESULTS = 2048  # what faiss can select on a GPU
ROWS_PER_ADD = 65_536
DIGEST_LIMIT = 1 << 30  # bytes: above this, opening a file for one query must not read all of it
REMEDY = "run `fwd2bot index DIR` to build it again from the parts"

FaissIndex = Any  # faiss ships no types


def require_faiss() -> None:
    """Raise MissingDependency without faiss: at the start of a run, not after hours of embedding."""
    if find_spec("faiss") is None:
        raise MissingDependency(
            'faiss is not installed: run pip install "fwd2bot[cpu]", or "fwd2bot[gpu]" for CUDA, never both'
        )


def _import_faiss() -> Any:
    require_faiss()
    import faiss

    return faiss


def build_faiss(vectors: NDArray[np.floating[Any]], ids: NDArray[np.int64]) -> FaissIndex:
    """Build the index over unit vectors (n, dim) that returns their ids (n,)."""
    faiss = _import_faiss()
    count, dim = vectors.shape
    index = faiss.index_factory(dim, choose_recipe(count, dim), faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        size = min(count, TRAINING_ROWS_PER_LIST * _count_lists(count))
        sample = np.random.default_rng(0).choice(count, size, replace=False)
        index.train(vectors[np.sort(sample)].astype(np.float32))
    for start in range(0, count, ROWS_PER_ADD):
        block = slice(start, start + ROWS_PER_ADD)
        index.add_with_ids(np.ascontiguousarray(vectors[block], np.float32), ids[block])
    return index


def choose_recipe(count: int, dim: int) -> str:
    """The faiss factory string for so many vectors."""
    if count <= EXACT_LIMIT:
        return "IDMap2,SQfp16"
    return f"IDMap2,RR{dim},IVF{_count_lists(count)},RaBitQfs,Refine(SQfp16)"


def _count_lists(count: int) -> int:
    """About four lists for each root of the count, a power of two: 4,096 at a million."""
    return int(2 ** round(np.log2(4 * np.sqrt(count))))


def search_faiss(index: FaissIndex, queries: FloatArray, k: int) -> list[list[tuple[int, float]]]:
    """The k best (id, score) of each query (n, dim), best first, equal scores in order of id."""
    k = min(k, index.ntotal)
    if k == 0:
        return [[] for _ in queries]
    queries = np.ascontiguousarray(queries, np.float32)
    if _pays_on_gpu(index, len(queries), k):
        scores, ids = _search_on_gpu(index, queries, k)
    else:
        scores, ids = index.search(queries, k)
    return [
        sorted(
            ((int(i), float(s)) for i, s in zip(*row, strict=True) if i != -1),
            key=lambda hit: (-hit[1], hit[0]),
        )
        for row in zip(ids, scores, strict=True)
    ]


def _pays_on_gpu(index: FaissIndex, queries: int, k: int) -> bool:
    """One query is answered sooner by the CPU than the vectors travel to the GPU; the GPU has no RaBitQ."""
    if queries < GPU_QUERIES or k > GPU_MOST_RESULTS or index.ntotal > EXACT_LIMIT:
        return False
    return bool(_import_faiss().get_num_gpus())


def _search_on_gpu(index: FaissIndex, queries: FloatArray, k: int) -> tuple[FloatArray, NDArray[np.int64]]:
    """Exact search of the vectors of an exact index: scores (n, k) and ids (n, k)."""
    faiss = _import_faiss()
    vectors = index.index.reconstruct_n(0, index.ntotal)
    resources = faiss.StandardGpuResources()
    scores, places = faiss.knn_gpu(resources, queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, read_faiss_ids(index)[places]


def save_faiss(index: FaissIndex, path: Path, next_id: int) -> FaissRecord:
    """Write the index so that it is whole or absent; plain `faiss.read_index` opens it."""
    faiss = _import_faiss()
    with replace_durably(path) as stream:
        # Through Python's own stream: of a disk found full on closing, faiss says only a line on stderr.
        faiss.write_index(index, faiss.PyCallbackIOWriter(stream.write))
    return FaissRecord(path.name, path.stat().st_size, digest_file(path), index.ntotal, next_id)


def load_faiss(index_dir: Path, record: FaissRecord) -> FaissIndex:
    """Map the file into memory, ready to search; IndexDamaged where it is not the one the manifest names."""
    faiss = _import_faiss()
    path = index_dir / record.name
    try:
        check_faiss_file(path, record, thorough=record.size <= DIGEST_LIMIT)
        # IO_FLAG_MMAP is silently ignored for flat indices.
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        if "IVF" in choose_recipe(record.rows, 1):
            parameters = f"nprobe={PROBES},k_factor_rf={REFINE_FACTOR}"
            faiss.ParameterSpace().set_index_parameters(index, parameters)
    except (OSError, ValueError, RuntimeError) as error:
        raise IndexDamaged(f"{path} is damaged ({_first_line(error)}): {REMEDY}") from None
    return index


def read_faiss_ids(index: FaissIndex) -> NDArray[np.int64]:
    """The ids an index can return, in the order they were added."""
    ids: NDArray[np.int64] = _import_faiss().vector_to_array(index.id_map)
    return ids


def is_faiss_sound(index_dir: Path, manifest: Manifest) -> bool:
    """Whether the FAISS file covers all parts and is the one the manifest names."""
    record = manifest.faiss
    if record is None or not manifest.faiss_is_current:
        return False
    try:
        check_faiss_file(index_dir / record.name, record, thorough=record.size <= DIGEST_LIMIT)
    except (OSError, ValueError):
        return False
    return True


def check_faiss_file(path: Path, record: FaissRecord, thorough: bool) -> None:
    """Raise ValueError or OSError unless size, and if thorough bytes, are those of the manifest."""
    size = path.stat().st_size
    if size != record.size:
        raise ValueError(f"{size} bytes where the manifest says {record.size}")
    if thorough and digest_file(path) != record.digest:
        raise ValueError("its bytes are not those the manifest knows")


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0][:200]
