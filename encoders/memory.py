"""Keeps freed memory for the next batch, and returns it to the system at the end."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

# Constants of glibc's malloc.h. Blocks of up to 32 MiB, the largest threshold, come from kept memory.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEPT_BLOCK = _KEPT_BYTES = 32 << 20
_USUALLY_KEPT, _USUALLY_MAPPED = 128 << 10, 65536
_ANY = (1 << 31) - 1


def keep_memory() -> None:
    """Make glibc keep the memory that a thread frees, up to 32 MiB per thread, for its next allocations.

    Every layer of a model allocates a new output. By default, glibc returns that memory each time and the
    system maps it in again page by page, which took a twelfth of a small model's time.
    """
    set_option = _find_in_libc("mallopt")
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, _KEPT_BLOCK)
        set_option(_TRIM_THRESHOLD, _KEPT_BYTES)


@contextmanager
def keep_all_memory() -> Iterator[None]:
    """Make glibc keep all freed memory, blocks of any size, within the context: for a training loop.

    Each step needs as much memory as the last. Returning and remapping it took a fourteenth of a step, and
    more when other work shared the machine. On exit, the thresholds are set to what glibc's own rule arrives
    at after large blocks have been freed.
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
    """Make the allocators return their free memory, after a stage of a run that needed much.

    glibc keeps what its threads have freed, hundreds of MiB after a model has run, and the next stage would
    add to it. Only a thread itself can return the end of its own heap, so each one that used much memory must
    call this. Allocators of other C libraries are left alone.
    """
    pa.default_memory_pool().release_unused()
    set_option, trim = _find_in_libc("mallopt"), _find_in_libc("malloc_trim")
    if set_option is not None and trim is not None:
        set_option(_TRIM_THRESHOLD, _USUALLY_KEPT)
        np.empty(2 * _USUALLY_KEPT, np.uint8)  # freed at once, which makes glibc trim this heap
        trim(0)


def _find_in_libc(name: str) -> Any:
    """A function of the C library; None if it lacks it, as musl does, or the system is not Linux."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
