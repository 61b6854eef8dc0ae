"""Atomic, durable file writes: to a temporary file, flushed to disk, then renamed.

Every data file of an index is written this way.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import BinaryIO

import xxhash

TEMPORARY_SUFFIX = ".tmp"
BYTES_PER_WRITE = 1 << 20


@contextmanager
def replace_durably(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream to write to; on a clean exit its content replaces `path`, atomically and durably."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    temporary.unlink(missing_ok=True)  # a leftover; in an index from elsewhere, perhaps a link to any file
    try:
        with BufferedWriter(FileIO(temporary, "x"), BYTES_PER_WRITE) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:  # a failed write does not name its file
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def digest_stream(stream: BinaryIO) -> str:
    """xxh3-128 of the rest of a stream, in hexadecimal."""
    digest = xxhash.xxh3_128()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def digest_file(path: Path) -> str:
    """xxh3-128 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return digest_stream(stream)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # a folder cannot be opened on Windows, where the rename itself is journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network and FUSE file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)
