"""A fake disk that fails at a chosen operation, as under a killed process or when full."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import FileIO
from typing import Any

import pytest

from indexer import durable

OPERATIONS = ("fsync", "replace", "unlink")  # functions of os; writes go through FileIO


class Killed(BaseException):
    """The process counts as dead from here on: nothing it does reaches the disk."""


class FaultyDisk:
    """Counts writes, flushes, renames and removals, and fails from number `fatal` on (0: never).

    mode "kill": that operation and all later ones do not happen. "half": the same, but if that operation is a
    write, half of it happens. "full": writes raise ENOSPC, everything else works.
    """

    def __init__(self, fatal: int = 0, mode: str = "kill") -> None:
        self.count = 0
        self.fatal = fatal
        self.mode = mode
        self.refused = 0
        self.writes: set[int] = set()

    def fails(self) -> bool:
        """Count one operation; return whether it is number `fatal` or later."""
        self.count += 1
        return 0 < self.fatal <= self.count

    def write(self, write: Callable[[Any], int], data: Any) -> int:
        """Write, or fail as the mode says."""
        fails = self.fails()
        self.writes.add(self.count)
        if not fails:
            return write(data)
        if self.mode == "full":
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.mode == "half" and self.count == self.fatal:
            write(memoryview(data)[: len(data) // 2])
        raise Killed

    def call(self, operate: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Run any other disk operation, unless the process is dead."""
        if self.fails() and self.mode != "full":
            raise Killed
        return operate(*arguments, **options)


@contextmanager
def install_disk(disk: FaultyDisk) -> Iterator[FaultyDisk]:
    """Send everything that is written to an index through the disk."""

    class CountedFile(FileIO):
        def write(self, data: Any) -> int:
            return disk.write(super().write, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "FileIO", CountedFile)
        for name in OPERATIONS:
            patch.setattr(os, name, partial(disk.call, getattr(os, name)))
        yield disk
