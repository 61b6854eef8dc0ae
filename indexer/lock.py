"""One writer per index: a file lock, and beside it a note that says who holds it."""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from encoders.base import IndexFailure, IndexLocked

from .manifest import MANIFEST_NAME, PARTS_FOLDER

LOCK_NAME = "lock"
HOLDER_NAME = "lock-holder.json"


@contextmanager
def lock_index(index_dir: Path) -> Iterator[None]:
    """Lock the index for writing, creating its folder if necessary.

    IndexLocked at once if another process holds the lock; IndexFailure if the folder cannot be created or
    written, or if a link in it would redirect writes or deletions out of it.
    """
    with ExitStack() as held:
        try:
            _refuse_links(index_dir)
            index_dir.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(index_dir / LOCK_NAME, timeout=0))
            _write_holder(index_dir)
            held.callback((index_dir / HOLDER_NAME).unlink, missing_ok=True)
        except Timeout:
            holder = _read_holder(index_dir)
            raise IndexLocked(f"{index_dir} is being written by {holder}: wait until it has ended") from None
        except (FileExistsError, NotADirectoryError):
            raise IndexFailure(
                f"{index_dir} cannot be a folder, for a file is in its way: name another with `--index PATH`"
            ) from None
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise IndexFailure(_explain_refusal(index_dir, error)) from None
        yield


def _explain_refusal(index_dir: Path, error: OSError) -> str:
    if os.access(index_dir / MANIFEST_NAME, os.F_OK):  # compact and repair have no other place to write
        remedy = "make it writable, or make another with `fwd2bot index DIR --index PATH`"
        return f"the index {index_dir} is read-only ({error.strerror}): {remedy}"
    return f"{index_dir} cannot be written ({error.strerror}): keep the index elsewhere, with `--index PATH`"


def _refuse_links(index_dir: Path) -> None:
    """Refuse links in the index folder, which only a foreign index has; the folder itself may be a link."""
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
    except (OSError, ValueError, KeyError, TypeError):  # the holder may be writing the note right now
        return "another process"
