"""Naive bookkeeping of a folder and its index: what a run should find and do, over whole files."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pyarrow.parquet as pq
import xxhash
from PIL import Image

from indexer.build import BuildReport

Row = dict[str, Any]


def draw_contents() -> dict[str, bytes]:
    """Six pictures, each with pixels of its own, and two files that are none."""
    contents = {"broken": b"no picture", "empty": b""}
    for number in range(6):
        stream = BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (5 + number, 7, 3), np.uint8)
        Image.fromarray(pixels).save(stream, "PNG")
        contents[f"picture {number}"] = stream.getvalue()
    return contents


CONTENTS = draw_contents()


def read_all_rows(index: Path) -> list[Row]:
    """Every row of every part that the manifest names; before there is one, of every part."""
    try:
        manifest = json.loads((index / "manifest.json").read_text())
        parts = [index / "parts" / part["name"] for part in manifest["parts"]]
    except FileNotFoundError:
        parts = sorted(index.glob("parts/*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def read_newest(index: Path) -> dict[str, Row]:
    """The newest row of each path, in order of ids."""
    rows = {row["path"]: row for row in read_all_rows(index)}
    return dict(sorted(rows.items(), key=lambda item: item[1]["id"]))


def read_living(index: Path) -> dict[str, Row]:
    """The newest rows of paths that are not gone."""
    return {path: row for path, row in read_newest(index).items() if row["status"] != "deleted"}


def list_files(root: Path, exclude: tuple[str, ...] = ()) -> dict[str, tuple[bytes, int]]:
    """The content and the time of each image that a run should see; `exclude` has whole names."""
    found = {}
    for path in root.rglob("*"):
        name, mtime = path.relative_to(root).as_posix(), path.stat().st_mtime_ns
        if path.suffix == ".png":
            found[name] = path.read_bytes(), mtime
        elif path.suffix == ".zip":
            with ZipFile(path) as archive:
                found |= {f"{name}/{item}": (archive.read(item), mtime) for item in archive.namelist()}
    return {name: file for name, file in found.items() if not set(name.split("/")) & set(exclude)}


def expect_report(root: Path, index: Path, exclude: tuple[str, ...] = ()) -> BuildReport:
    """What the next run should report."""
    files, living = list_files(root, exclude), read_living(index)
    embedded = {row["digest"] for row in read_all_rows(index) if row["status"] == "ok"}
    counts = dict.fromkeys(BuildReport._fields, 0)
    for path, (content, mtime) in files.items():
        row, digest = living.get(path), xxhash.xxh3_128(content).hexdigest()
        if row and (row["size"], row["mtime_ns"]) == (len(content), mtime):
            counts["reused" if row["status"] == "ok" else "skipped"] += 1
        elif digest in embedded:
            counts["copied"] += 1
        elif content in (CONTENTS["broken"], CONTENTS["empty"]):
            counts["skipped"] += 1
        else:
            counts["indexed"] += 1
            embedded.add(digest)
    counts["removed"] = len(living.keys() - files.keys())
    return BuildReport(**counts)


def strip(row: Row) -> Row:
    """What a row says of a file's content; every value as text, as NaN would not equal itself."""
    return {name: str(value) for name, value in row.items() if name not in ("id", "path")}
