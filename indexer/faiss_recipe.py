"""Which kind of FAISS index to use for how many vectors, and how to train the approximate kind.

Up to EXACT_LIMIT images, search is exact: float16, every vector scanned. Above that, inverted lists of
vectors with eight bits per value: the one kind in FAISS that supports adding, deleting, memory mapping and
GPUs alike.
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
EXTREME_SHARE = 0.0005  # of values cut off at each end of the range
PROBED_SHARE_OF_ROOT = 0.5
LEAST_PROBES = 16


def is_exact(count: int) -> bool:
    """Whether this many vectors are few enough to scan every one for every query."""
    return count <= EXACT_LIMIT


def count_lists(count: int) -> int:
    """The number of inverted lists: about 4 sqrt(count), rounded to a power of two; 4,096 for a million."""
    return int(2 ** round(np.log2(4 * np.sqrt(count))))


def count_probes(lists: int) -> int:
    """How many lists to probe for one query: 32 for a million images."""
    return min(lists, max(LEAST_PROBES, int(PROBED_SHARE_OF_ROOT * np.sqrt(lists))))


def is_outgrown(trained: int, count: int) -> bool:
    """Whether an index of this many vectors when trained (0: exact) should be rebuilt for `count` of them."""
    if trained == 0:
        return not is_exact(count)
    return not trained <= GROWTH_BEFORE_TRAINING * count <= GROWTH_BEFORE_TRAINING**2 * trained


def draw_sample(count: int, lists: int) -> NDArray[np.int64]:
    """Positions of the vectors to train on, increasing: drawn at random, but the same every time."""
    size = min(count, TRAINING_ROWS_PER_LIST * lists)
    return np.sort(np.random.default_rng(0).choice(count, size, replace=False))


def create_exact(dim: int, count: int) -> Any:
    """An empty exact index of float16 vectors with room for `count`: growing would hold them twice."""
    faiss = import_faiss()
    index = faiss.index_factory(dim, "IDMap2,SQfp16", faiss.METRIC_INNER_PRODUCT)
    codes = faiss.downcast_index(index.index).codes
    codes.resize(2 * dim * count)
    codes.resize(0)
    return index


def train_lists(sample: FloatArray, lists: int) -> Any:
    """An empty index with this many inverted lists, trained on sample vectors (n, dim)."""
    faiss = import_faiss()
    dim = sample.shape[1]
    means = faiss.Clustering(dim, lists)
    means.niter, means.seed, means.spherical, means.min_points_per_centroid = ITERATIONS, 1, True, 1
    means.train(sample, create_assigner(dim, lists))
    index = faiss.index_factory(dim, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.quantizer.add(faiss.vector_to_array(means.centroids).reshape(lists, dim))
    # The centroids are set; this trains the range of each dimension. A few outliers would make it coarse.
    index.sq.rangestat, index.sq.rangestat_arg = faiss.ScalarQuantizer.RS_quantiles, EXTREME_SHARE
    index.train(sample)
    index.nprobe = count_probes(lists)
    return index


def create_assigner(dim: int, lists: int) -> Any:
    """An empty index for `lists` centroids that assigns vectors to the nearest one.

    Exact on a GPU. Without one, it probes the nearest ASSIGNER_PROBES of 2 sqrt(lists) groups of centroids:
    for 16,384 centroids a seventh of the work, which finds the nearest nine times out of ten, else one close
    to it.
    """
    faiss = import_faiss()
    if has_gpu():
        return faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), dim)
    groups = round(2 * np.sqrt(lists))
    assigner = faiss.index_factory(dim, f"IVF{groups},Flat", faiss.METRIC_INNER_PRODUCT)
    assigner.nprobe = ASSIGNER_PROBES
    assigner.cp.min_points_per_centroid = 1
    return assigner
