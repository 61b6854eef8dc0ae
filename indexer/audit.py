"""Describe an index, and check every byte of it against its manifest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoders.base import IndexDamaged, IndexFailure

from .columns import decode_summaries, decode_vectors
from .contents import DIGEST_LENGTH
from .durable import digest_file
from .faiss_file import blame_faiss, check_faiss_file, load_faiss
from .faiss_index import FAISS_REMEDY, read_faiss_ids
from .manifest import PARTS_FOLDER, Manifest, PartRecord, read_manifest
from .observer import SILENT, Observer
from .parts import LONGEST_ROW, REPAIR_REMEDY, read_groups, trust_nothing
from .paths import leads_out
from .roots import locate_root
from .table import read_following, read_images, read_newest_rows

STATUSES = {"ok", "skipped", "deleted"}
DIGEST_PATTERN = f"^[0-9a-f]{{{DIGEST_LENGTH}}}$"


class IndexDescription(NamedTuple):
    """An index in numbers; `skipped` and `removed` count paths, `size` the bytes of the parts and FAISS file.

    `dead` counts rows that a compaction would drop: those of files that have since changed, moved or gone.
    While `faiss` is behind the parts, a search reads them all, until the next run ends.
    """

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
    dead: int
    parts: int
    size: int
    bytes_per_image: int | None
    faiss: Literal["current", "behind"]
    created: str
    updated: str


class Fault(NamedTuple):
    """What is wrong with an index, in one sentence, and the part at fault; None if it is the FAISS file."""

    sentence: str
    part: PartRecord | None


def describe_index(index_dir: str | Path) -> IndexDescription:
    """Count what is in an index."""
    index_dir = Path(index_dir)
    manifest, rows = read_following(
        index_dir,
        read_manifest(index_dir),
        lambda manifest: read_newest_rows(index_dir, manifest, ["status"]),
    )
    statuses = rows["status"].value_counts().to_pylist()
    counts = dict.fromkeys(STATUSES, 0) | {item["values"]: item["counts"] for item in statuses}
    size = sum(part.size for part in manifest.parts) + (manifest.faiss.size if manifest.faiss else 0)
    return IndexDescription(
        folder=str(index_dir),
        root=str(locate_root(manifest.root, index_dir)),
        model=manifest.encoder.name,
        fingerprint=manifest.encoder.fingerprint,
        dim=manifest.encoder.dim,
        tokens=manifest.tokens,
        summary_shape=manifest.encoder.summary_shape,
        images=counts["ok"],
        skipped=counts["skipped"],
        removed=counts["deleted"],
        dead=sum(part.rows for part in manifest.parts) - counts["ok"] - counts["skipped"],
        parts=len(manifest.parts),
        size=size,
        bytes_per_image=round(size / counts["ok"]) if counts["ok"] else None,
        faiss="current" if manifest.faiss_is_current or not manifest.parts else "behind",
        created=manifest.created,
        updated=manifest.updated,
    )


def audit_index(index_dir: str | Path, observer: Observer = SILENT) -> Iterator[Fault]:
    """Read every byte of an index, as it is now, and yield the faults found.

    A file that a run or a compaction replaces meanwhile is no fault, as it may be gone before it is read.
    IndexFailure if a part cannot be read just now: that is not damage, and nothing should be dropped for it.
    """
    index_dir = Path(index_dir)
    manifest = read_manifest(index_dir)
    damaged = False
    observer.begin("verifying", sum(part.rows for part in manifest.parts))
    for part in manifest.parts:
        try:
            audit_part(index_dir, manifest, part)
        except IndexFailure as error:
            damaged = True
            if part not in read_manifest(index_dir).parts:
                continue
            if not isinstance(error, IndexDamaged):
                raise
            yield Fault(str(error), part)
        observer.advance(part.rows)
    try:
        _audit_faiss(index_dir, manifest, compare=not damaged)
    except IndexDamaged as error:
        if read_manifest(index_dir).faiss == manifest.faiss:
            yield Fault(str(error), None)


def audit_part(index_dir: Path, manifest: Manifest, part: PartRecord, room: int = 0) -> None:
    """Read every byte of a part; IndexDamaged if anything is wrong with it.

    room: the bytes that every row must have to spare, for a longer path.
    """
    path = index_dir / PARTS_FOLDER / part.name
    due = part.first_id
    for table in read_groups(index_dir, manifest, part):
        reason = _find_fault(table, due, part.last_id, room) or _find_image_fault(table, manifest)
        if reason:
            raise IndexDamaged(f"{path} is damaged ({reason}): {REPAIR_REMEDY}")
        due = table["id"][-1].as_py() + 1
    with trust_nothing(path):
        if digest_file(path) != part.digest:
            raise ValueError("its bytes are not those written")


def _find_fault(table: pa.Table, first_id: int, last_id: int, room: int) -> str:
    """What is wrong with the file columns of one row group, or ""."""
    ids = table["id"].to_numpy()
    if not (first_id <= ids[0] and ids[-1] <= last_id and (np.diff(ids) > 0).all()):
        return "its ids do not grow within the bounds of the manifest"
    if not STATUSES.issuperset(pc.unique(table["status"]).to_pylist()):
        return "it holds an unknown status"
    if any(path == "" or leads_out(path) for path in table["path"].to_pylist()):
        return "it holds a path that is empty or leads out of the folder"
    if pc.min(table["width"]).as_py() < 0 or pc.min(table["height"]).as_py() < 0:
        return "it holds a width or height below zero"
    words = [table[field.name] for field in table.schema if pa.types.is_string(field.type)]
    if sum(pc.binary_length(column).to_numpy() for column in words).max() > LONGEST_ROW - room:
        return "it holds a row of longer names and words than any that is read"
    return ""


def _find_image_fault(table: pa.Table, manifest: Manifest) -> str:
    """What is wrong with the embeddings, digests and tokens of one row group, or ""."""
    images = table.filter(pc.equal(table["status"], "ok"))
    if table["embedding"].null_count != len(table) - len(images) or images["embedding"].null_count:
        return "its embeddings are not those of its images"
    if not np.isfinite(decode_vectors(images["embedding"], manifest.encoder.dim)).all():
        return "it holds an embedding that is not a number"
    if not pc.all(pc.match_substring_regex(images["digest"], DIGEST_PATTERN), min_count=0).as_py():
        return "it holds a digest that is none"
    try:
        if manifest.encoder.summary_shape is not None:
            decode_summaries(manifest, images)
    except ValueError as error:
        return str(error)
    return ""


def _audit_faiss(index_dir: Path, manifest: Manifest, compare: bool) -> None:
    """Check the FAISS file against the manifest and, if `compare`, against the parts."""
    record = manifest.faiss
    if not manifest.parts:
        return
    if record is None or not manifest.faiss_is_current:
        raise IndexDamaged(
            f"{index_dir} has no FAISS file for its newest parts: {FAISS_REMEDY}, unless it runs now"
        )
    path = index_dir / record.name
    try:
        check_faiss_file(path, record, thorough=True)
    except (OSError, ValueError) as error:
        raise blame_faiss(path, error) from None
    ids = read_faiss_ids(load_faiss(index_dir, record, manifest.encoder.dim))
    if compare and not _agrees_with_parts(index_dir, manifest, ids):
        raise IndexDamaged(f"{path} is damaged (its images are not those of the parts): {FAISS_REMEDY}")


def _agrees_with_parts(index_dir: Path, manifest: Manifest, ids: NDArray[np.int64]) -> bool:
    """Whether the parts, which are sound, hold exactly these images; also true if they have gone since."""
    try:
        return np.array_equal(ids, read_images(index_dir, manifest)["id"].to_numpy())
    except IndexDamaged:  # a compaction has just replaced them
        return True
