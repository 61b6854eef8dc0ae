"""Errors by which the system refuses memory or threads: neither a model nor a file is at fault."""

import errno
import os

# What the dynamic linker, Python, and PyTorch say.
_WORDS = (
    "failed to map segment",
    "cannot allocate memory",
    os.strerror(errno.ENOMEM),
    "can't start new thread",
    "not enough memory",
    "can't allocate memory",
)


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory, that of a GPU included, or threads have run out."""
    if isinstance(error, MemoryError) or is_gpu_shortage(error):
        return True
    refused = isinstance(error, ImportError | OSError | RuntimeError)
    return refused and any(words in str(error) for words in _WORDS)


def is_gpu_shortage(error: BaseException) -> bool:
    """Whether an error is torch.OutOfMemoryError; torch is not imported for it."""
    return type(error).__name__ == "OutOfMemoryError"
