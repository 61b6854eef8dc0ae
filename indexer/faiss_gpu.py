"""The FAISS index on a GPU, for building a large one and for many queries at once.

The file is that of the CPU. faiss-cpu answers that there are no GPUs.
"""

from typing import Any

from .faiss_library import has_gpu, import_faiss

GPU_QUERIES = 256  # fewer are answered sooner by the CPU than the vectors travel
GPU_MOST_RESULTS = 2048  # what faiss can select on a GPU


def pays_on_gpu(queries: int, k: int) -> bool:
    """Whether to answer these queries on a GPU."""
    return queries >= GPU_QUERIES and k <= GPU_MOST_RESULTS and has_gpu()


def copy_to_gpu(index: Any, exact: bool) -> Any:
    """A copy of an index on the first GPU, which keeps the float16 vectors of an exact one as float32."""
    faiss = import_faiss()
    resources = faiss.StandardGpuResources()  # the copy keeps them alive
    if not exact:
        return faiss.index_cpu_to_gpu(resources, 0, index)
    copy = faiss.IndexIDMap(faiss.GpuIndexFlatIP(resources, index.d))
    copy.add_with_ids(index.index.reconstruct_n(0, index.ntotal), faiss.vector_to_array(index.id_map))
    return copy
