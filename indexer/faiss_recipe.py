"""Which kind of FAISS index suits how many vectors, and how the approximate kind is trained.

Exact up to EXACT_LIMIT images: float16, every vector looked at. Above that inverted lists of vectors in eight
bits a value: of what FAISS has it is the kind that can add, delete, be mapped into memory and move to a GPU.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.base import FloatArray

from .faiss_library import has_gpu, import_faiss

EXACT_LIMIT = 200_000
GROWTH_BEFORE_TRAINING = 4
TRAINING_ROWS_PER_LIST = 40
ITERATIONS = 5  # ten gained nothing
ASSIGNER_PROBES = 32
EXTREME_SHARE = 0.0005  # at each end
PROBED_SHARE_OF_ROOT = 0.5
LEAST_PROBES = 16


def is_exact(count: int) -> bool:
    """Whether so many vectors are few enough to look at every one for every query."""
    return count <= EXACT_LIMIT


def count_lists(count: int) -> int:
    """About four lists for each root of the count, a power of two: 4,096 at a million."""
    return int(2 ** round(np.log2(4 * np.sqrt(count))))


def count_probes(lists: int) -> int:
    """How many lists are looked at for one query: 32 at a million images."""
    return min(lists, max(LEAST_PROBES, int(PROBED_SHARE_OF_ROOT * np.sqrt(lists))))


def is_outgrown(trained: int, count: int) -> bool:
    """Whether an index trained on so many vectors (0: exact) should be built anew for `count` of them."""
    if trained == 0:
        return not is_exact(count)
    return not trained <= GROWTH_BEFORE_TRAINING * count <= GROWTH_BEFORE_TRAINING**2 * trained


def draw_sample(count: int, lists: int) -> NDArray[np.int64]:
    """The places, in increasing order, of the vectors to train on: drawn at random, the same every time."""
    size = min(count, TRAINING_ROWS_PER_LIST * lists)
    return np.sort(np.random.default_rng(0).choice(count, size, replace=False))


def create_exact(dim: int, count: int) -> Any:
    """An empty exact index of float16 vectors, with room for so many: growing would hold them twice."""
    faiss = import_faiss()
    index = faiss.index_factory(dim, "IDMap2,SQfp16", faiss.METRIC_INNER_PRODUCT)
    codes = faiss.downcast_index(index.index).codes
    codes.resize(2 * dim * count)
    codes.resize(0)
    return index


def train_lists(sample: FloatArray, lists: int) -> Any:
    """An empty index of so many inverted lists, trained on sample vectors (n, dim)."""
    faiss = import_faiss()
    dim = sample.shape[1]
    means = faiss.Clustering(dim, lists)
    means.niter, means.seed, means.spherical, means.min_points_per_centroid = ITERATIONS, 1, True, 1
    means.train(sample, create_assigner(dim, lists))
    index = faiss.index_factory(dim, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.quantizer.add(faiss.vector_to_array(means.centroids).reshape(lists, dim))
    # The centres are there: what is left is the range of each value. Few extreme ones would make it coarse.
    index.sq.rangestat, index.sq.rangestat_arg = faiss.ScalarQuantizer.RS_quantiles, EXTREME_SHARE
    index.train(sample)
    index.nprobe = count_probes(lists)
    return index


def create_assigner(dim: int, lists: int) -> Any:
    """An empty index for so many centres that says of many vectors which is nearest.

    Exact on a GPU. Without one it looks at the nearest ASSIGNER_PROBES of 2 root(lists) groups of centres:
    of 16,384 centres a seventh of the work, which finds the nearest nine times in ten and else one near it.
    """
    faiss = import_faiss()
    if has_gpu():
        return faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), dim)
    groups = round(2 * np.sqrt(lists))
    assigner = faiss.index_factory(dim, f"IVF{groups},Flat", faiss.METRIC_INNER_PRODUCT)
    assigner.nprobe = ASSIGNER_PROBES
    assigner.cp.min_points_per_centroid = 1
    return assigner
