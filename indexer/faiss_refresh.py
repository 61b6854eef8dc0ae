"""Bring the FAISS index in line with the parts: updated where possible, rebuilt where necessary."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoders.base import IndexDamaged

from .faiss_file import load_faiss
from .faiss_index import FaissIndex, build_faiss, read_faiss_ids, update_faiss
from .faiss_recipe import is_outgrown
from .manifest import FaissRecord, Manifest
from .observer import SILENT, Observer
from .table import read_vectors


def refresh_faiss(
    index_dir: Path, manifest: Manifest, living: NDArray[np.int64], observer: Observer = SILENT
) -> FaissIndex:
    """The FAISS index of the images with these increasing ids: updated if possible, else rebuilt."""
    updated = _update_from_parts(index_dir, manifest, living, observer)
    return updated or build_from_parts(index_dir, manifest, living, observer)


def build_from_parts(
    index_dir: Path, manifest: Manifest, living: NDArray[np.int64], observer: Observer
) -> FaissIndex:
    """Build the FAISS index of the images with these increasing ids from the parts alone."""
    blocks = partial(_read_vectors, index_dir, manifest, living, observer)
    return build_faiss(blocks, len(living), manifest.encoder.dim)


def _read_vectors(
    index_dir: Path, manifest: Manifest, wanted: NDArray[np.int64], observer: Observer
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
    """Read blocks for FAISS, which asks for them once to learn and once to add them."""
    observer.begin("FAISS", len(wanted))
    for ids, vectors in read_vectors(index_dir, manifest, wanted):
        yield ids, vectors
        observer.advance(len(ids))


def _update_from_parts(
    index_dir: Path, manifest: Manifest, living: NDArray[np.int64], observer: Observer
) -> FaissIndex | None:
    """Update the index that the manifest names; None if it must be rebuilt instead."""
    record = manifest.faiss
    if record is None or is_outgrown(record.trained, len(living)):
        return None
    try:
        index = load_faiss(index_dir, record, manifest.encoder.dim, mapped=False)
    except IndexDamaged:
        return None
    removed = np.setdiff1d(read_faiss_ids(index), living, assume_unique=True)
    added = living[np.searchsorted(living, record.next_id) :]  # ids are never reused
    newer = _drop_older_parts(manifest, record)
    update_faiss(index, partial(_read_vectors, index_dir, newer, added, observer), removed)
    return index if np.array_equal(read_faiss_ids(index), living) else None


def _drop_older_parts(manifest: Manifest, record: FaissRecord) -> Manifest:
    """The manifest without the parts all of whose rows existed when the FAISS file was made."""
    ends = [*(part.first_id for part in manifest.parts[1:]), manifest.next_id]
    newer = (part for part, end in zip(manifest.parts, ends, strict=True) if end > record.next_id)
    return replace(manifest, parts=tuple(newer))
