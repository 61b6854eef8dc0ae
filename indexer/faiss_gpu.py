"""The FAISS index on a GPU, to build a large one and to answer many queries at once.

The file on disk is always the CPU index. faiss-cpu reports that there are no GPUs.
"""

from typing import Any

from .faiss_library import has_gpu, import_faiss

GPU_QUERIES = 256  # below this, the CPU answers before the vectors have reached the GPU
GPU_MOST_RESULTS = 2048  # the largest k that faiss supports on a GPU


def pays_on_gpu(queries: int, k: int) -> bool:
    """Whether it is worth answering this many queries on a GPU."""
    return queries >= GPU_QUERIES and k <= GPU_MOST_RESULTS and has_gpu()


def copy_to_gpu(index: Any, exact: bool) -> Any:
    """Copy an index to the first GPU; the float16 vectors of an exact one become float32 there."""
    faiss = import_faiss()
    resources = faiss.StandardGpuResources()  # the copy keeps them alive
    if not exact:
        return faiss.index_cpu_to_gpu(resources, 0, index)
    copy = faiss.IndexIDMap(faiss.GpuIndexFlatIP(resources, index.d))
    copy.add_with_ids(index.index.reconstruct_n(0, index.ntotal), faiss.vector_to_array(index.id_map))
    return copy
