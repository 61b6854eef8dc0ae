"""The only place that imports faiss: on first use, with an error that says how to install it."""

from importlib.util import find_spec
from typing import Any

from encoders.base import MissingDependency

BLAS_THRESHOLD = 24 * 256  # queries x dimensions from which one matrix product is faster; faiss: 128,000


def require_faiss() -> None:
    """Raise MissingDependency without faiss: at the start of a run, not after hours of embedding."""
    if find_spec("faiss") is None:
        raise MissingDependency(
            'faiss is not installed: run pip install "fwd2bot[cpu]", or "fwd2bot[gpu]" for CUDA, never both'
        )


def import_faiss() -> Any:
    """Import faiss, which ships no types, with a lower BLAS threshold; MissingDependency if absent."""
    require_faiss()
    import faiss

    tuned = min(faiss.cvar.distance_compute_blas_threshold, BLAS_THRESHOLD)
    faiss.cvar.distance_compute_blas_threshold = tuned
    return faiss


def has_gpu() -> bool:
    """Whether faiss sees a GPU; faiss-cpu never does."""
    return bool(import_faiss().get_num_gpus())
