"""The FAISS file: written whole or absent, mapped into memory for searching, and never believed.

A file from elsewhere comes with a manifest from elsewhere, so after size and digest every measure that faiss
computes addresses from is compared with the others before the first search.
"""

from pathlib import Path
from typing import Any

from encoders.base import IndexDamaged

from .durable import digest_file, replace_durably
from .faiss_index import REMEDY, FaissIndex
from .faiss_library import import_faiss
from .manifest import FaissRecord, Manifest

DIGEST_LIMIT = 1 << 30  # bytes: above this, opening a file for one query must not read all of it


def save_faiss(index: FaissIndex, path: Path, next_id: int) -> FaissRecord:
    """Write the index so that it is whole or absent; plain `faiss.read_index` opens it."""
    faiss = import_faiss()
    with replace_durably(path) as stream:
        # Through Python's own stream: of a disk found full on closing, faiss says only a line on stderr.
        faiss.write_index(index.cpu, faiss.PyCallbackIOWriter(stream.write))
    return FaissRecord(path.name, path.stat().st_size, digest_file(path), index.count, next_id, index.trained)


def load_faiss(index_dir: Path, record: FaissRecord, dim: int, mapped: bool = True) -> FaissIndex:
    """Open the file for searching or, where not mapped, for changing; IndexDamaged where it is not sound."""
    faiss = import_faiss()
    path = index_dir / record.name
    try:
        check_faiss_file(path, record, thorough=record.size <= DIGEST_LIMIT)
        # IO_FLAG_MMAP is silently ignored for flat indices. Adding to a mapped index aborts the process.
        cpu = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
        _require_sound(faiss, cpu, record, dim)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        raise IndexDamaged(f"{path} is damaged ({_first_line(error)}): {REMEDY}") from None
    return FaissIndex(cpu, record.trained)


def is_faiss_sound(index_dir: Path, manifest: Manifest) -> bool:
    """Whether the FAISS file covers all parts and is the one the manifest names."""
    record = manifest.faiss
    if record is None or not manifest.faiss_is_current:
        return False
    try:
        check_faiss_file(index_dir / record.name, record, thorough=record.size <= DIGEST_LIMIT)
    except (OSError, ValueError):
        return False
    return True


def check_faiss_file(path: Path, record: FaissRecord, thorough: bool) -> None:
    """Raise ValueError or OSError unless size, and if thorough bytes, are those of the manifest."""
    size = path.stat().st_size
    if size != record.size:
        raise ValueError(f"{size} bytes where the manifest says {record.size}")
    if thorough and digest_file(path) != record.digest:
        raise ValueError("its bytes are not those the manifest knows")


def _require_sound(faiss: Any, index: Any, record: FaissRecord, dim: int) -> None:
    """Raise ValueError unless all measures of an index agree: faiss trusts them when it searches."""
    _require("kind", type(index).__name__, "IndexIVFScalarQuantizer" if record.trained else "IndexIDMap2")
    _require("number of vectors", index.ntotal, record.rows)
    _require("dimension", index.d, dim)
    _require("metric", index.metric_type, faiss.METRIC_INNER_PRODUCT)
    if record.trained:
        _require_sound_lists(faiss, index, dim)
    else:
        _require_sound_codes(faiss, index, dim)


def _require_sound_codes(faiss: Any, index: Any, dim: int) -> None:
    codes = faiss.downcast_index(index.index)
    _require("number of ids", index.id_map.size(), index.ntotal)
    _require("kind of vectors", type(codes).__name__, "IndexScalarQuantizer")
    _require("number of codes", codes.ntotal, index.ntotal)
    _require("metric of codes", codes.metric_type, faiss.METRIC_INNER_PRODUCT)
    _require("type of codes", codes.sq.qtype, faiss.ScalarQuantizer.QT_fp16)
    _require("length of a vector", (codes.d, codes.sq.d), (dim, dim))
    _require("bytes of a vector", (codes.code_size, codes.sq.code_size), (2 * dim, 2 * dim))
    _require("bytes of vectors", codes.codes.size(), 2 * dim * index.ntotal)


def _require_sound_lists(faiss: Any, index: Any, dim: int) -> None:
    centres, lists = faiss.downcast_index(index.quantizer), index.invlists
    _require("kind of centres", type(centres).__name__, "IndexFlatIP")
    _require("number of lists", (lists.nlist, centres.ntotal), (index.nlist, index.nlist))
    _require("length of a centre", (centres.d, centres.codes.size()), (dim, 4 * dim * index.nlist))
    _require("type of codes", index.sq.qtype, faiss.ScalarQuantizer.QT_8bit)
    _require("length of a code", (index.code_size, lists.code_size, index.sq.code_size), (dim, dim, dim))
    _require("ranges of values", (index.sq.d, index.sq.trained.size()), (dim, 2 * dim))
    _require("vectors in lists", lists.compute_ntotal(), index.ntotal)


def _require(what: str, found: object, due: object) -> None:
    if found != due:
        raise ValueError(f"{what} is {found} where {due} is due")


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
