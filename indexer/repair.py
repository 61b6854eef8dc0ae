"""Repair an index: make its FAISS file and its manifest again from the parts, and drop damaged parts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from encoders.base import IndexDamaged, ManifestDamaged

from .audit import Fault, audit_index, audit_part
from .durable import digest_file
from .lock import lock_index
from .manifest import (
    MANIFEST_NAME,
    MOST_IDS,
    PART_NAME,
    PARTS_FOLDER,
    REBUILD_REMEDY,
    EncoderRecord,
    Manifest,
    PartRecord,
    TokenFormat,
    parse_encoder,
    parse_tokens,
    read_clock,
    read_legible_root,
    read_manifest,
    write_manifest,
)
from .observer import SILENT, Observer
from .parts import require_regular, trust_nothing
from .roots import locate_root
from .writer import IndexWriter, list_files, remove_orphans


def repair_index(index_dir: str | Path, observer: Observer = SILENT) -> list[Fault]:
    """Drop damaged parts, and rebuild the FAISS file and a damaged manifest; returns what was wrong.

    The next run embeds the images of the dropped parts again. IndexFailure, with nothing dropped, if a part
    cannot be read just now.
    """
    index_dir = Path(index_dir)
    with lock_index(index_dir):
        mended = list(_mend_manifest(index_dir))
        remove_orphans(index_dir)
        faults = list(audit_index(index_dir, observer))
        if faults:
            manifest = read_manifest(index_dir)
            damaged = {fault.part for fault in faults}
            parts = tuple(part for part in manifest.parts if part not in damaged)
            manifest = write_manifest(index_dir, replace(manifest, parts=parts, faiss=None))
            IndexWriter(index_dir, manifest).refresh_faiss(observer)
    return mended or faults  # without a manifest there is no FAISS file either, which is no other fault


def _mend_manifest(index_dir: Path) -> Iterator[Fault]:
    """Write another manifest in the place of a damaged one; IndexDamaged if there is no sound part."""
    try:
        read_manifest(index_dir)
    except ManifestDamaged:
        manifest, damaged = restore_manifest(index_dir, read_legible_root(index_dir) or "..")
        if manifest is None:
            raise IndexDamaged(f"{index_dir} has no sound part: {REBUILD_REMEDY}") from None
        write_manifest(index_dir, manifest)
        rows, place = sum(part.rows for part in manifest.parts), locate_root(manifest.root, index_dir)
        restored = f"made again from {rows:,} rows, as the index of {place}"
        yield Fault(f"{index_dir / MANIFEST_NAME} is damaged: {restored}", None)
        yield from (Fault(sentence, None) for sentence in damaged.values())


class Restored(NamedTuple):
    """A manifest made from parts, None if no part is sound, and a sentence by the name of a damaged part."""

    manifest: Manifest | None
    damaged: dict[str, str]


def restore_manifest(index_dir: Path, root: str) -> Restored:
    """Describe the parts that are there, for an index without a manifest.

    root: as the manifest stores it; a part does not say which folder its paths are relative to. Of parts with
    the same ids the newest counts: the others were joined or compacted into it. It may hold what the lost
    manifest did not name: rows of a run that was killed before it could commit, and older rows of a file; the
    next run compares all with the files.
    """
    found, damaged = list[Manifest](), dict[str, str]()
    for name in _list_parts(index_dir):
        try:
            found.append(_describe_part(index_dir, name, root))
        except IndexDamaged as error:
            damaged[name] = str(error)
    if not found:
        return Restored(None, damaged)
    found, parts = _choose_model(found), list[PartRecord]()
    for each in found:
        parts += [part for part in each.parts if not any(_share_ids(part, other) for other in parts)]
    parts.sort(key=lambda part: part.first_id)
    now = read_clock()
    manifest = replace(found[0], created=now, updated=now, next_id=parts[-1].last_id + 1, parts=tuple(parts))
    return Restored(manifest, damaged)


def _choose_model(found: Sequence[Manifest]) -> list[Manifest]:
    """Of these manifests, newest first, those of one model: the newest's, unless that has a single part.

    A rebuild that was killed before it could commit leaves one part, and has replaced nothing. So a model of
    a single part gives way to the one before it, if that has more rows.
    """
    models = dict[tuple[EncoderRecord, TokenFormat], list[Manifest]]()
    for each in found:  # a model's name changes when it is moved
        models.setdefault((replace(each.encoder, name=""), each.tokens), []).append(each)
    newest, *older = models.values()
    if len(newest) == 1 and older and newest[0].parts[0].rows < sum(each.parts[0].rows for each in older[0]):
        return older[0]
    return newest


def _list_parts(index_dir: Path) -> list[str]:
    """The names of the parts that are there, the newest first."""
    found = (PART_NAME.fullmatch(path.name) for path in list_files(index_dir / PARTS_FOLDER))
    matches = sorted(filter(None, found), key=lambda match: int(match[1]), reverse=True)
    return [match[0] for match in matches]


def _share_ids(part: PartRecord, other: PartRecord) -> bool:
    return part.first_id <= other.last_id and other.first_id <= part.last_id


def _describe_part(index_dir: Path, name: str, root: str) -> Manifest:
    """A manifest of this part alone; IndexDamaged if the part is not sound in every byte."""
    path = index_dir / PARTS_FOLDER / name
    with trust_nothing(path):
        require_regular(path)
        with pq.ParquetFile(path) as file:
            part = _describe_rows(path, file.metadata)
            model = _read_model(file.schema_arrow.metadata or {})
    manifest = Manifest(root, *model, created="", updated="", next_id=part.last_id + 1, parts=(part,))
    audit_part(index_dir, manifest, part)
    return manifest


def _describe_rows(path: Path, metadata: pq.FileMetaData) -> PartRecord:
    """The record of a part; audit_part will tell whether its statistics are right."""
    ids = [metadata.row_group(number).column(0).statistics for number in range(metadata.num_row_groups)]
    if not ids or not all(some and isinstance(some.min, int) and isinstance(some.max, int) for some in ids):
        raise ValueError("it does not say which ids it has")
    first, last = ids[0].min, ids[-1].max
    if not 0 <= first <= last < MOST_IDS:
        raise ValueError(f"impossible ids, {first} to {last}")
    return PartRecord(path.name, path.stat().st_size, digest_file(path), metadata.num_rows, first, last)


def _read_model(metadata: Mapping[bytes, bytes]) -> tuple[EncoderRecord, TokenFormat]:
    """The model and the form of its tokens, which `build_schema` noted."""
    facts = {key.decode(): value.decode() for key, value in metadata.items()}
    shape = [int(facts["k"]), int(facts["width"])] if "k" in facts else None
    names = {"name": facts["encoder"], "fingerprint": facts["fingerprint"]}
    tokens = parse_tokens(facts["tokens"])
    return parse_encoder({**names, "dim": int(facts["dim"]), "summary_shape": shape}, tokens), tokens
