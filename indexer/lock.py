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

from .manifest import PARTS_FOLDER

LOCK_NAME = "lock"
HOLDER_NAME = "lock-holder.json"


@contextmanager
def lock_index(index_dir: Path) -> Iterator[None]:
    """Hold the index for writing, creating its folder.

    IndexLocked at once when another process holds it; IndexFailure where nothing may be written, or a link
    would lead what is written, or removed, out of the folder.
    """
    lock = FileLock(index_dir / LOCK_NAME, timeout=0)
    try:
        _refuse_links(index_dir)
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


def _refuse_links(index_dir: Path) -> None:
    """The folder itself may be reached by a link; in it, only an index from elsewhere has one."""
    for path in (index_dir / LOCK_NAME, index_dir / PARTS_FOLDER):
        if path.is_symlink():
            raise IndexFailure(
                f"{path} is a link, and no index is written through one: put what it leads to in its place, "
                "or remove it"
            )


def _write_holder(index_dir: Path) -> None:
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
    path = index_dir / HOLDER_NAME
    path.unlink(missing_ok=True)  # as in durable.py
    with path.open("x", encoding="utf-8") as stream:
        json.dump(holder, stream)


def _read_holder(index_dir: Path) -> str:
    try:
        holder = json.loads((index_dir / HOLDER_NAME).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):  # it may be writing the note this moment
        return "another process"
