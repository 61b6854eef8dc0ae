"""One writer an index: a file lock, and beside it a note that says who holds it."""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from encoders.base import IndexFailure, IndexLocked

LOCK_NAME = "lock"
HOLDER_NAME = "lock-holder.json"


@contextmanager
def lock_index(index_dir: Path) -> Iterator[None]:
    """Hold the index for writing, creating its folder.

    IndexLocked at once when another process holds it; IndexFailure where nothing may be written.
    """
    lock = FileLock(index_dir / LOCK_NAME, timeout=0)
    try:
        index_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        holder = _read_holder(index_dir)
        raise IndexLocked(f"{index_dir} is being written by {holder}: wait until it has ended") from None
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise IndexFailure(
            f"{index_dir} cannot be written ({error.strerror}): keep the index elsewhere, with `--index PATH`"
        ) from None
    try:
        _write_holder(index_dir)
        yield
    finally:
        (index_dir / HOLDER_NAME).unlink(missing_ok=True)
        lock.release()


def _write_holder(index_dir: Path) -> None:
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
    (index_dir / HOLDER_NAME).write_text(json.dumps(holder), encoding="utf-8")


def _read_holder(index_dir: Path) -> str:
    try:
        holder = json.loads((index_dir / HOLDER_NAME).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):  # it may be writing the note this moment
        return "another process"
