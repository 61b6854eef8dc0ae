"""Memory that was used and is free again: kept for the next batch, given back to the system at the end."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

# Numbers of glibc's malloc.h. A block of up to 32 MiB, the most that glibc takes, comes from what is kept.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEPT_BLOCK = _KEPT_BYTES = 32 << 20
_USUALLY_KEPT, _USUALLY_MAPPED = 128 << 10, 65536
_ANY = (1 << 31) - 1


def keep_memory() -> None:
    """Have glibc keep what a thread frees, up to 32 MiB each, for what it allocates next.

    Every layer of a model allocates its output anew. Left to itself glibc returns that memory each time, and
    the system hands it out again page by page, which was a twelfth of the time of a small model.
    """
    set_option = _find_in_libc("mallopt")
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, _KEPT_BLOCK)
        set_option(_TRIM_THRESHOLD, _KEPT_BYTES)


@contextmanager
def keep_all_memory() -> Iterator[None]:
    """Meanwhile, have glibc keep whatever is freed, of any size: for a loop of training.

    What a step needs the next one needs too. Given back and mapped anew each time, it was a fourteenth of the
    time of a step, and more where other work shared the machine. Afterwards glibc's own rule holds, as it
    stands where large blocks have been freed.
    """
    set_option, trim = _find_in_libc("mallopt"), _find_in_libc("malloc_trim")
    if set_option is None or trim is None:
        yield
        return
    set_option(_MMAP_MAX, 0)
    set_option(_TRIM_THRESHOLD, _ANY)
    try:
        yield
    finally:
        set_option(_MMAP_MAX, _USUALLY_MAPPED)
        set_option(_MMAP_THRESHOLD, _KEPT_BLOCK)
        set_option(_TRIM_THRESHOLD, 2 * _KEPT_BLOCK)
        trim(0)


def give_back_memory() -> None:
    """Have the allocators keep nothing in store: for the end of a part of a run that needed much.

    glibc keeps what its threads have freed, hundreds of MiB after a model has run, and the next part would
    come on top of it. The end of its own heap a thread alone can give back, so each calls this that used
    much. Other systems' allocators are left to themselves.
    """
    pa.default_memory_pool().release_unused()
    set_option, trim = _find_in_libc("mallopt"), _find_in_libc("malloc_trim")
    if set_option is not None and trim is not None:
        set_option(_TRIM_THRESHOLD, _USUALLY_KEPT)
        np.empty(2 * _USUALLY_KEPT, np.uint8)  # freed at once: then glibc looks at what else is free there
        trim(0)


def _find_in_libc(name: str) -> Any:
    """A function of the C library; None where it has no such, as musl and those of other systems."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
