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
_ONEDNN = "could not create a primitive"  # where it cannot read its inputs, it goes on: "descriptor for ..."


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory, that of a GPU included, or threads have run out."""
    if isinstance(error, MemoryError) or is_gpu_shortage(error):
        return True
    refused, said = isinstance(error, ImportError | OSError | RuntimeError), str(error)
    return refused and (said.endswith(_ONEDNN) or any(words in said for words in _WORDS))


def is_gpu_shortage(error: BaseException) -> bool:
    """Whether an error is torch.OutOfMemoryError; torch is not imported for it."""
    return type(error).__name__ == "OutOfMemoryError"
