"""Memory that was used and is free again, given back to the system."""

import ctypes
import sys

import pyarrow as pa


def give_back_memory() -> None:
    """Have the allocators keep nothing in store: for the end of a part of a run that needed much.

    glibc keeps what its threads have freed, hundreds of MiB after a model has run, and the next part would
    come on top of it. Other systems' allocators are left to themselves.
    """
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
