"""The manifest lists everything that belongs to an index; a file that it does not name is not part of it.

It is replaced atomically and last, so a reader always sees complete parts, and a killed run loses only what
no manifest names.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast, get_args

import xxhash

from encoders.base import (
    Encoder,
    EncoderMismatch,
    IndexDamaged,
    IndexFailure,
    IndexNotFound,
    ManifestDamaged,
    TextEncoder,
)

from .durable import replace_durably
from .roots import Root, check_root, relate_root

FORMAT = 2
LARGEST_MANIFEST = 1 << 26  # bytes: a billion images need a third of it
MANIFEST_NAME = "manifest.json"
MOST_IDS = 1 << 62
LARGEST_DIM = 1 << 16
LARGEST_SUMMARY = 1 << 23  # values: a row group of 128 such rows fits in memory
PARTS_FOLDER = "parts"
PART_NAME = re.compile(r"part-(\d{6,12})\.parquet")
FAISS_NAME = re.compile(r"index-(\d{6,12})\.faiss")
REBUILD_REMEDY = "run `fwd2bot index DIR --rebuild`"
RESTORE_REMEDY = "run `fwd2bot verify --repair`, which makes it again from the parts"

TokenFormat = Literal["int8", "float16", "none"]


@dataclass(frozen=True)
class EncoderRecord:
    """The model that made an index; `summary_shape` is (k, width), or None if it keeps no tokens."""

    name: str
    fingerprint: str
    dim: int
    summary_shape: tuple[int, int] | None


@dataclass(frozen=True)
class PartRecord:
    """One immutable Parquet file; the ids of its rows increase from first_id to last_id."""

    name: str
    size: int
    digest: str
    rows: int
    first_id: int
    last_id: int


@dataclass(frozen=True)
class FaissRecord:
    """The FAISS file.

    `next_id` is that of the manifest it was made for: if the current one is larger, the file is out of date.
    `trained` is how many vectors it held when it was trained, 0 if it is exact.
    """

    name: str
    size: int
    digest: str
    rows: int
    next_id: int
    trained: int


@dataclass(frozen=True)
class Manifest:
    """Everything an index consists of; `root` is `..` if the index lies directly in it, so both can move.

    `next_id` is the id of the next row to be written: until a rebuild, ids are never reused, even when their
    rows are gone.
    """

    root: str
    encoder: EncoderRecord
    tokens: TokenFormat
    created: str
    updated: str
    next_id: int = 0
    parts: tuple[PartRecord, ...] = ()
    faiss: FaissRecord | None = None

    @property
    def faiss_is_current(self) -> bool:
        """Whether the FAISS file covers every part."""
        return self.faiss is not None and self.faiss.next_id == self.next_id


def create_manifest(root: Root, index_dir: Path, encoder: Encoder, tokens: TokenFormat) -> Manifest:
    """Describe a new index of `root`, made by `encoder`, without parts."""
    shape = encoder.summary_shape if tokens != "none" else None
    record = EncoderRecord(encoder.name, encoder.fingerprint, encoder.dim, shape)
    now = read_clock()
    return Manifest(relate_root(root, index_dir), record, tokens, created=now, updated=now)


def require_same_encoder(encoder: TextEncoder, manifest: Manifest) -> None:
    """Raise EncoderMismatch unless the encoder has the fingerprint of the one that made the index."""
    made_by, ours = manifest.encoder, encoder.fingerprint
    if ours == made_by.fingerprint:
        return
    anew = "`fwd2bot index DIR --rebuild` to embed all images anew"
    keep = f"`--model {made_by.name}` to go on, `--index PATH` to keep both"
    remedy = anew if encoder.name == made_by.name else f"{keep}, or {anew}"
    raise EncoderMismatch(
        f"the index was made by {made_by.name} ({made_by.fingerprint}), "
        f"but the model at hand is {encoder.name} ({ours}): use {remedy}"
    )


def write_manifest(index_dir: Path, manifest: Manifest) -> Manifest:
    """Replace the manifest atomically; returns it as written, with `updated` set to now."""
    manifest = replace(manifest, updated=read_clock())
    content: dict[str, Any] = {"format": FORMAT, **asdict(manifest)}
    content["digest"] = _digest(content)
    with replace_durably(index_dir / MANIFEST_NAME) as stream:
        stream.write((json.dumps(content, indent=1) + "\n").encode("utf-8"))
    return manifest


def read_manifest(index_dir: Path) -> Manifest:
    """Read the manifest: IndexNotFound if there is none, ManifestDamaged if it cannot be trusted.

    A plain IndexDamaged if a newer version of fwd2bot made it; IndexFailure if the system cannot read it.
    """
    path = index_dir / MANIFEST_NAME
    try:
        data = json.loads(_read_bounded(path))
        if _take(data, "format", int) > FORMAT:
            raise IndexDamaged(
                f"{index_dir} was made by a newer fwd2bot (format {data['format']} where this one reads "
                f"{FORMAT}): upgrade fwd2bot"
            )
        return _parse_manifest(data)
    except (FileNotFoundError, NotADirectoryError):
        raise IndexNotFound(f"no index at {index_dir}: make one with `fwd2bot index DIR`") from None
    except OSError as error:
        raise IndexFailure(f"{path} cannot be read ({error.strerror}): fix that and run it again") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ManifestDamaged(f"{path} is damaged ({_describe_fault(error)}): {RESTORE_REMEDY}") from None


def read_legible_root(index_dir: Path) -> str | None:
    """The root that a damaged manifest names, if it can still be read."""
    try:
        text = _read_bounded(index_dir / MANIFEST_NAME).decode("utf-8", errors="replace")
        found = re.search(r'^ "root": (".*"),$', text, re.MULTILINE)
        return check_root(json.loads(found[1])) if found else None
    except ValueError:
        return None


def _digest(content: Mapping[str, Any]) -> str:
    """xxh3-128 of everything else in a manifest, so that no flipped bit in it decides what is deleted."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True).encode())


def _describe_fault(error: Exception) -> str:
    if isinstance(error, TypeError):  # Python's own message is about Python, not the file
        return "it is JSON, but of another layout"
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _read_bounded(path: Path) -> bytes:
    size = path.stat().st_size
    if size > LARGEST_MANIFEST:
        raise ValueError(f"{size:,} bytes where {LARGEST_MANIFEST:,} are the most")
    return path.read_bytes()


def read_clock() -> str:
    """The current date and time in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _parse_manifest(data: Any) -> Manifest:
    if data["format"] != FORMAT:
        raise ValueError(f"its format is {data['format']} where this version of fwd2bot reads {FORMAT}")
    if data.get("digest") not in (None, _digest(data)):  # older versions wrote none
        raise ValueError("its content is not what was written")
    tokens = parse_tokens(data["tokens"])
    next_id = _take(data, "next_id", int)
    if next_id > MOST_IDS:
        raise ValueError(f"impossible next id {next_id}")
    return Manifest(
        root=check_root(_take(data, "root", str)),
        encoder=parse_encoder(data["encoder"], tokens),
        tokens=tokens,
        created=_take(data, "created", str),
        updated=_take(data, "updated", str),
        next_id=next_id,
        parts=_parse_parts(data["parts"], next_id),
        faiss=None if data["faiss"] is None else _parse_faiss(data["faiss"]),
    )


def parse_tokens(tokens: Any) -> TokenFormat:
    """Check the name of a form of summary tokens; ValueError unless it is one."""
    if tokens not in get_args(TokenFormat):
        raise ValueError(f"unknown tokens {tokens!r}")
    return cast(TokenFormat, tokens)


def parse_encoder(data: Any, tokens: TokenFormat) -> EncoderRecord:
    """Check the record of a model; ValueError if its sizes are impossible, or not those of such tokens."""
    shape = data["summary_shape"]
    if (shape is None) != (tokens == "none"):
        raise ValueError(f"summary shape {shape} with tokens {tokens!r}")
    if shape is not None:
        if len(shape) != 2:
            raise ValueError(f"impossible summary shape {shape}")
        count, width = shape
        if not 0 < _check(count, "k", int) * _check(width, "width", int) <= LARGEST_SUMMARY:
            raise ValueError(f"impossible summary shape {shape}")
        shape = (count, width)
    dim = _take(data, "dim", int)
    if not 0 < dim <= LARGEST_DIM:
        raise ValueError(f"impossible dim {dim}")
    return EncoderRecord(_take(data, "name", str), _take(data, "fingerprint", str), dim, shape)


def _parse_parts(data: Any, next_id: int) -> tuple[PartRecord, ...]:
    fields = ("rows", "first_id", "last_id")
    parts = tuple(PartRecord(**_parse_file(item, PART_NAME, fields)) for item in _check(data, "parts", list))
    if len({part.name for part in parts}) < len(parts):
        raise ValueError("it names a part twice")
    due = 0
    for part in parts:
        if not due <= part.first_id <= part.last_id < next_id:
            raise ValueError(f"{part.name} has impossible ids, {part.first_id} to {part.last_id}")
        if not 0 < part.rows <= part.last_id - part.first_id + 1:
            raise ValueError(f"{part.name} has {part.rows} rows of the ids {part.first_id} to {part.last_id}")
        due = part.last_id + 1
    return parts


def _parse_faiss(data: Any) -> FaissRecord:
    return FaissRecord(**_parse_file(data, FAISS_NAME, ("rows", "next_id", "trained")))


def _parse_file(data: Any, pattern: re.Pattern[str], numbers: Sequence[str]) -> dict[str, Any]:
    """Check the record of one file; the pattern keeps a name from leading out of the index folder."""
    record: dict[str, Any] = {key: _take(data, key, str) for key in ("name", "digest")}
    record |= {key: _take(data, key, int) for key in ("size", *numbers)}
    if not pattern.fullmatch(record["name"]):
        raise ValueError(f"impossible file name {record['name']!r}")
    return record


def _take(data: Mapping[str, Any], key: str, kind: type) -> Any:
    return _check(data[key], key, kind)


def _check(value: Any, key: str, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
        raise ValueError(f"{key} is {value!r}")
    return value
