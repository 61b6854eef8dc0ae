"""The FAISS file: written atomically, memory-mapped for searching, and never trusted.

A file from elsewhere comes with a manifest from elsewhere, so a matching digest proves nothing: see
faiss_layout.py.
"""

import errno
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np

from encoders.base import IndexDamaged, IndexFailure

from .durable import digest_file, replace_durably
from .faiss_index import FAISS_REMEDY, FaissIndex
from .faiss_layout import check_layout
from .faiss_library import import_faiss
from .images import describe_error
from .manifest import FaissRecord, Manifest

DIGEST_LIMIT = 1 << 30  # bytes; a larger file is not read in full just to be opened for one query


def save_faiss(index: FaissIndex, path: Path, next_id: int) -> FaissRecord:
    """Write the index atomically; plain `faiss.read_index` can open it."""
    faiss = import_faiss()
    with replace_durably(path) as stream:
        # Through a Python stream: if the disk is full on close, faiss itself only prints a line to stderr.
        faiss.write_index(index.cpu, faiss.PyCallbackIOWriter(stream.write))
    return FaissRecord(path.name, path.stat().st_size, digest_file(path), index.count, next_id, index.trained)


def load_faiss(index_dir: Path, record: FaissRecord, dim: int, mapped: bool = True) -> FaissIndex:
    """Open the file for searching or, if not `mapped`, for updating.

    IndexDamaged if it is unsound; a plain IndexFailure if there is no memory for it.
    """
    faiss = import_faiss()
    path = index_dir / record.name
    try:
        _check_to_open(path, record, dim)
        if mapped:
            return _map_index(path, record)
        # Adding to a mapped index aborts the process.
        return FaissIndex(faiss.read_index(str(path)), record.trained)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            raise IndexFailure(
                f"{path} cannot be opened (no memory left): make room and run it again"
            ) from None
        raise blame_faiss(path, error) from None


def blame_faiss(path: Path, error: Exception) -> IndexDamaged:
    """The error for a bad FAISS file; an unreadable one is IndexDamaged too, since it can be rebuilt."""
    fault = "cannot be read" if isinstance(error, OSError) and error.errno else "is damaged"
    return IndexDamaged(f"{path} {fault} ({describe_error(error)}): {FAISS_REMEDY}")


def is_faiss_sound(index_dir: Path, manifest: Manifest) -> bool:
    """Whether the FAISS file that the manifest names covers all parts and is sound."""
    record = manifest.faiss
    if record is None or not manifest.faiss_is_current:
        return False
    try:
        _check_to_open(index_dir / record.name, record, manifest.encoder.dim)
    except (OSError, ValueError):
        return False
    return True


def check_faiss_file(path: Path, record: FaissRecord, thorough: bool) -> None:
    """Raise ValueError or OSError unless the size and, if `thorough`, the digest match the manifest."""
    size = path.stat().st_size
    if size != record.size:
        raise ValueError(f"{size} bytes where the manifest says {record.size}")
    if thorough and digest_file(path) != record.digest:
        raise ValueError("its bytes are not those the manifest knows")


def _map_index(path: Path, record: FaissRecord) -> FaissIndex:
    """Memory-map the file here rather than in faiss, so that its pages can be released."""
    faiss = import_faiss()
    with path.open("rb") as stream:
        pages = mmap(stream.fileno(), 0, access=ACCESS_READ)
    reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(np.frombuffer(pages, np.uint8)), len(pages))
    return FaissIndex(faiss.read_index(reader), record.trained, pages=pages)


def _check_to_open(path: Path, record: FaissRecord, dim: int) -> None:
    check_faiss_file(path, record, thorough=record.size <= DIGEST_LIMIT)
    check_layout(path, record.rows, dim, exact=record.trained == 0)
