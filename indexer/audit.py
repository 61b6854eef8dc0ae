"""What an index is made of, and whether every byte of it is as the manifest says."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from encoders.base import IndexDamaged

from .durable import digest_file
from .faiss_file import check_faiss_file, load_faiss
from .faiss_index import REMEDY, read_faiss_ids
from .manifest import PARTS_FOLDER, REBUILD_REMEDY, Manifest, PartRecord, locate_root, read_manifest
from .parts import read_groups
from .table import EmbeddingTable, read_known_files

STATUSES = {"ok", "skipped", "deleted"}


class IndexDescription(NamedTuple):
    """An index in numbers; `skipped` and `removed` are paths, `size` is bytes on disk of all that counts."""

    folder: str
    root: str
    model: str
    fingerprint: str
    dim: int
    tokens: str
    summary_shape: tuple[int, int] | None
    images: int
    skipped: int
    removed: int
    parts: int
    size: int
    bytes_per_image: int
    searchable: str
    created: str
    updated: str


def describe_index(index_dir: Path) -> IndexDescription:
    """Count what is in an index."""
    manifest = read_manifest(index_dir)
    counts = Counter(file.status for file in read_known_files(index_dir, manifest).values())
    size = sum(part.size for part in manifest.parts) + (manifest.faiss.size if manifest.faiss else 0)
    return IndexDescription(
        folder=str(index_dir),
        root=str(locate_root(manifest, index_dir)),
        model=manifest.encoder.name,
        fingerprint=manifest.encoder.fingerprint,
        dim=manifest.encoder.dim,
        tokens=manifest.tokens,
        summary_shape=manifest.encoder.summary_shape,
        images=counts["ok"],
        skipped=counts["skipped"],
        removed=counts["deleted"],
        parts=len(manifest.parts),
        size=size,
        bytes_per_image=round(size / max(1, counts["ok"])),
        searchable="yes" if manifest.faiss_is_current else "slowly, until the next index run ends",
        created=manifest.created,
        updated=manifest.updated,
    )


def audit_index(index_dir: Path) -> Iterator[str]:
    """Read every byte of an index and yield a sentence for each file that is not as it should be."""
    manifest = read_manifest(index_dir)
    damaged = False
    for part in manifest.parts:
        try:
            _audit_part(index_dir, manifest, part)
        except IndexDamaged as error:
            damaged = True
            yield str(error)
    try:
        _audit_faiss(index_dir, manifest, compare=not damaged)
    except IndexDamaged as error:
        yield str(error)


def _audit_part(index_dir: Path, manifest: Manifest, part: PartRecord) -> None:
    path = index_dir / PARTS_FOLDER / part.name
    expected = part.first_id
    for table in read_groups(index_dir, manifest, part):
        reason = _find_fault(table, expected)
        if reason:
            raise IndexDamaged(f"{path} is damaged ({reason}): {REBUILD_REMEDY}")
        expected += len(table)
    if digest_file(path) != part.digest:
        raise IndexDamaged(f"{path} is damaged (its bytes are not those written): {REBUILD_REMEDY}")


def _find_fault(table: pa.Table, first_id: int) -> str:
    """What the rows of one group get wrong, or nothing."""
    if not np.array_equal(table["id"].to_numpy(), np.arange(first_id, first_id + len(table))):
        return "its ids are not consecutive"
    statuses = table["status"].to_pylist()
    if not STATUSES.issuperset(statuses):
        return "it holds an unknown status"
    if table["embedding"].is_valid().to_pylist() != [status == "ok" for status in statuses]:
        return "its embeddings are not those of its images"
    return ""


def _audit_faiss(index_dir: Path, manifest: Manifest, compare: bool) -> None:
    """Check the FAISS file against the manifest and, where the parts can be read, against them."""
    record = manifest.faiss
    if record is None or not manifest.faiss_is_current:
        raise IndexDamaged(f"{index_dir} has no FAISS file for its newest parts: {REMEDY}")
    path = index_dir / record.name
    try:
        check_faiss_file(path, record, thorough=True)
    except (OSError, ValueError) as error:
        raise IndexDamaged(f"{path} is damaged ({error}): {REMEDY}") from None
    ids = read_faiss_ids(load_faiss(index_dir, record, manifest.encoder.dim))
    if compare and not np.array_equal(ids, EmbeddingTable.open(index_dir).ids):
        raise IndexDamaged(f"{path} is damaged (its images are not those of the parts): {REMEDY}")
