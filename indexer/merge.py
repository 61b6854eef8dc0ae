"""Merge one index into another of the same model, without reading or embedding any image again.

Paths are relative to the folder that was indexed, so that of the source must lie in that of the target. For a
path that both have, the target keeps its own row; merging twice has the same effect as merging once.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoders.base import EncoderMismatch, IndexDamaged, IndexFailure, IndexNotFound

from .audit import audit_part
from .faiss_library import require_faiss
from .lock import lock_index
from .manifest import Manifest, read_clock, read_manifest, write_manifest
from .observer import SILENT, Observer
from .parts import read_groups
from .paths import escape_path, leads_out
from .roots import Root, locate_root, relate_root
from .table import mark_members, read_newest_rows
from .writer import IndexWriter, remove_orphans


class MergeReport(NamedTuple):
    """What a merge did: rows added, and rows left out because the target already had their paths."""

    added: int
    known: int


def merge_index(target: str | Path, source: str | Path, observer: Observer = SILENT) -> MergeReport:
    """Add to the index `target` the rows whose paths only the index `source` has; `source` is not changed.

    IndexDamaged if a part of `source` is unsound, before any row is added. A killed merge keeps the rows it
    has committed, and the next one adds the rest.
    """
    target, source = Path(target), Path(source)
    require_faiss()
    with lock_index(target):
        remove_orphans(target)
        manifest, other = read_manifest(target), read_manifest(source)
        _require_alike(target, manifest, source, other)
        prefix = _relate_folders(target, manifest, source, other)
        writer = IndexWriter(target, manifest)
        with _explain_changes(source, other):
            observer.begin("verifying", sum(part.rows for part in other.parts))
            for part in other.parts:
                audit_part(source, other, part, room=len(prefix.encode()))
                observer.advance(part.rows)
            wanted, known = _find_news(target, manifest, source, other, prefix)
            observer.begin("merging", len(wanted))
            for part in other.parts:
                for table in read_groups(source, other, part):
                    rows = table.filter(pa.array(mark_members(table["id"], wanted)))
                    writer.append_table(rows, _add_prefix(prefix, rows["path"]))
                    observer.advance(len(rows))
        writer.commit()
        writer.refresh_faiss(observer)
    return MergeReport(len(wanted), known)


@contextmanager
def _explain_changes(source: Path, other: Manifest) -> Iterator[None]:
    """Ask for another run, instead of calling `source` damaged, if a run has changed it while it was read."""
    try:
        yield
    except IndexDamaged:
        if read_manifest(source) == other:
            raise
        raise IndexFailure(f"{source} was changed while it was being merged: merge again") from None


def create_above(target: str | Path, one: str | Path, other: str | Path) -> None:
    """Create an empty index of the deepest common folder of two others, unless `target` is one already."""
    target, one, other = Path(target), Path(one), Path(other)
    with lock_index(target):
        try:
            read_manifest(target)
        except IndexNotFound:
            manifest, second = read_manifest(one), read_manifest(other)
            _require_alike(one, manifest, other, second)
            folder = _find_folder_above(locate_root(manifest.root, one), locate_root(second.root, other))
            above = relate_root(folder, target)
            empty = replace(manifest, root=above, created=read_clock(), next_id=0, parts=(), faiss=None)
            write_manifest(target, empty)


def _find_folder_above(one: Root, other: Root) -> Root:
    if isinstance(one, Path) and isinstance(other, Path) and one.drive == other.drive:
        return Path(os.path.commonpath([one, other]))
    raise IndexFailure(f"{one} and {other} have no folder in common: search each index on its own")


def _require_alike(target: Path, manifest: Manifest, source: Path, other: Manifest) -> None:
    ours, theirs = manifest.encoder, other.encoder
    if ours.fingerprint != theirs.fingerprint:
        raise EncoderMismatch(
            f"{target} was made by {ours.name} ({ours.fingerprint}) and {source} by {theirs.name} "
            f"({theirs.fingerprint}): index one of them anew with `--rebuild --model` of the other"
        )
    if (manifest.tokens, ours.summary_shape) != (other.tokens, theirs.summary_shape):
        raise IndexFailure(
            f"{target} keeps tokens as {manifest.tokens} and {source} as {other.tokens}: "
            "index one of them anew with `--rebuild --tokens` of the other"
        )


def _relate_folders(target: Path, manifest: Manifest, source: Path, other: Manifest) -> str:
    """The prefix that makes a path of `source` one of `target`: a stored path that ends in a slash, or ""."""
    ours, theirs = (
        f"{escape_path(str(root)).removesuffix('/')}/"
        for root in (locate_root(manifest.root, target), locate_root(other.root, source))
    )
    below = theirs.removeprefix(ours)
    if theirs.startswith(ours) and not leads_out(below):  # a URL may have a `..`
        return below
    raise IndexFailure(
        f"{source} is the index of {theirs}, which does not lie in {ours}, the folder of {target}: "
        "give `--out PATH` for a new index of the folder above both"
    )


def _find_news(
    target: Path, manifest: Manifest, source: Path, other: Manifest, prefix: str
) -> tuple[NDArray[np.int64], int]:
    """The ids of the rows of `source` whose paths are new to `target`, and the number of the others."""
    ours, theirs = (
        rows.filter(pc.not_equal(rows["status"], "deleted"))
        for rows in (
            read_newest_rows(target, manifest, ["status"]),
            read_newest_rows(source, other, ["id", "status"]),
        )
    )
    is_known = pc.is_in(_add_prefix(prefix, theirs["path"]), value_set=ours["path"])
    news: NDArray[np.int64] = theirs["id"].filter(pc.invert(is_known)).to_numpy()
    return news, len(theirs) - len(news)


def _add_prefix(prefix: str, paths: pa.ChunkedArray) -> pa.ChunkedArray:
    prefix, separator = (pa.scalar(text, paths.type) for text in (prefix, ""))
    return pc.binary_join_element_wise(prefix, paths, separator)
