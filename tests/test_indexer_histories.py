"""Whatever happens to a folder and to its index, the next run leaves what naive bookkeeping says."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from encoders.base import Fwd2BotError, ManifestDamaged, NothingToIndex
from indexer import build as build_module
from indexer import compact as compact_module
from indexer import writer
from indexer.audit import audit_index
from indexer.build import BuildSettings
from indexer.build import build as build_index
from indexer.compact import compact_index
from indexer.manifest import read_manifest
from indexer.merge import merge_index
from indexer.repair import repair_index
from indexer.table import EmbeddingTable
from tests.faults import FaultyDisk, Killed, install_disk
from tests.knowing_encoders import NoiseEncoder
from tests.naive_index import (
    CONTENTS,
    expect_report,
    list_files,
    read_all_rows,
    read_living,
    read_newest,
    strip,
)

NAMES = [f"{folder}{name}.png" for folder in ("", "x/", "x/y/", "z/") for name in "ab"]
ARCHIVES = ("pack.zip", "x/pack.zip")
contents = st.sampled_from(sorted(CONTENTS))
places = st.sampled_from(NAMES)
moments = st.integers(1, 60)
faults = st.sampled_from(["kill", "half", "full"])
spoilers = st.sampled_from(["flip", "cut", "lose"])


class Histories(RuleBasedStateMachine):
    """A folder to which anything may happen, and its index, which may be killed and damaged at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(os, "fsync", lambda descriptor: None)
        self.patch.setattr(writer, "ROWS_PER_COMMIT", 3)
        self.patch.setattr(writer, "MOST_SMALL_PARTS", 3)
        for module in (writer, build_module, compact_module):
            self.patch.setattr(module, "ROWS_PER_PART", 5)
        self.place = TemporaryDirectory()
        self.root = Path(self.place.name, "root")
        self.root.mkdir()
        self.index = self.root / ".fwd2bot"
        self.clock = 10**18
        self.opened: tuple[EmbeddingTable, dict[int, bytes]] | None = None

    def teardown(self) -> None:
        self.patch.undo()
        self.place.cleanup()

    @initialize(first=contents)
    def begin(self, first: str) -> None:
        self.write("a.png", first)

    # What may happen to the folder.

    @rule(name=places, content=contents)
    def write(self, name: str, content: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENTS[content])
        self.date(path)

    @rule(name=st.sampled_from(ARCHIVES), members=st.dictionaries(places, contents, min_size=1, max_size=3))
    def pack(self, name: str, members: dict[str, str]) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, CONTENTS[content])
        self.date(path)

    @rule(name=st.sampled_from([*NAMES, *ARCHIVES]))
    def touch(self, name: str) -> None:
        if (self.root / name).exists():
            self.date(self.root / name)

    @rule(name=st.sampled_from([*NAMES, *ARCHIVES]))
    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    @rule(old=places, new=places)
    def move(self, old: str, new: str) -> None:
        if (self.root / old).exists():
            (self.root / new).parent.mkdir(parents=True, exist_ok=True)
            (self.root / old).replace(self.root / new)

    @rule(old=st.sampled_from("xz"), new=st.sampled_from("xzw"))
    def move_folder(self, old: str, new: str) -> None:
        if (self.root / old).is_dir() and not (self.root / new).exists():
            (self.root / old).rename(self.root / new)

    def date(self, path: Path) -> None:
        self.clock += 1
        os.utime(path, ns=(self.clock, self.clock))

    # What may happen to the index.

    @rule(exclude=st.sampled_from([(), (), (), ("x",), ("b.png",)]), workers=st.integers(1, 2))
    def index_again(self, exclude: tuple[str, ...], workers: int) -> None:
        expected, encoder = expect_report(self.root, self.index, exclude), NoiseEncoder()
        choice = BuildSettings(batch_size=2, workers=workers, exclude=exclude)
        if not list_files(self.root, exclude):
            with pytest.raises(NothingToIndex):
                build_index(self.root, self.index, encoder, choice)
            return
        assert build_index(self.root, self.index, encoder, choice) == expected
        assert encoder.embedded == expected.indexed
        self.compare_with_fresh(exclude)

    @rule(fatal=moments, mode=faults)
    def index_and_die(self, fatal: int, mode: str) -> None:
        self.die(fatal, mode, lambda: build_index(self.root, self.index, NoiseEncoder()))

    @rule()
    def rebuild(self) -> None:
        if list_files(self.root):
            build_index(self.root, self.index, NoiseEncoder(), BuildSettings(rebuild=True))
            self.opened = None
            self.compare_with_fresh()

    @rule()
    def compact(self) -> None:
        if self.is_there():
            before = read_living(self.index)
            compact_index(self.index)
            assert read_all_rows(self.index) == list(before.values())

    @rule(fatal=moments, mode=faults)
    def compact_and_die(self, fatal: int, mode: str) -> None:
        before = read_living(self.index)
        self.die(fatal, mode, lambda: compact_index(self.index))
        assert read_living(self.index) == before

    @precondition(lambda self: any((self.root / "x").glob("**/*.png")) and self.is_there())
    @rule()
    def merge_an_index_of_a_folder_below(self) -> None:
        part = Path(self.place.name, "part")
        shutil.rmtree(part, ignore_errors=True)
        build_index(self.root / "x", part, NoiseEncoder())
        ours, theirs = read_living(self.index), read_newest(part)
        new = {f"x/{path}": row for path, row in theirs.items() if f"x/{path}" not in ours}
        assert merge_index(self.index, part) == (len(new), len(theirs) - len(new))
        found = read_living(self.index)
        assert found.keys() == ours.keys() | new.keys()
        for path, row in found.items():
            assert strip(row) == strip(ours.get(path) or new[path])

    @precondition(lambda self: self.is_there())
    @rule(where=st.integers(0, 10**6), how=spoilers)
    def damage_a_file_and_repair(self, where: int, how: str) -> None:
        files = sorted([*self.index.glob("parts/*.parquet"), *self.index.glob("*.faiss")])
        if not files:
            return
        damaged, before = files[where % len(files)], read_manifest(self.index).parts
        spoil(damaged, where, how)
        try:
            EmbeddingTable.open(self.index).to_arrow()
            build_index(self.root, self.index, NoiseEncoder())
        except Fwd2BotError:
            pass
        kept = {part.name for part in before if part in read_manifest(self.index).parts}
        assert list(audit_index(self.index)) or damaged.name not in kept  # the run replaces a FAISS file
        repair_index(self.index)
        assert list(audit_index(self.index)) == []
        self.opened = None

    @precondition(lambda self: self.is_there() and read_manifest(self.index).parts)
    @rule(where=st.integers(0, 10**6), how=spoilers)
    def damage_the_manifest(self, where: int, how: str) -> None:
        before, path = read_living(self.index), self.index / "manifest.json"
        sound = path.read_bytes()
        spoil(path, max(where % len(sound), len(b'{\n "format": 2,\n "root": "..",')), how)
        self.opened = None
        if how == "lose":
            self.index_and_die(10**9, "kill")
            return
        try:
            assert read_manifest(self.index) is not None
        except ManifestDamaged:
            writer.remove_orphans(self.index)
        repair_index(self.index)
        assert read_living(self.index).keys() >= before.keys()
        assert list(audit_index(self.index)) == []

    @precondition(lambda self: self.is_there())
    @rule()
    def open_for_reading(self) -> None:
        rows = [row for row in read_all_rows(self.index) if row["status"] == "ok"]
        vectors = {row["id"]: np.array(row["embedding"], np.float16).tobytes() for row in rows}
        self.opened = EmbeddingTable.open(self.index), vectors

    @precondition(lambda self: self.opened and self.is_there())
    @rule()
    def read_on(self) -> None:
        assert self.opened is not None
        table, before = self.opened
        living = {row["id"] for row in read_living(self.index).values()}
        ids = [row_id for row_id in table.ids.tolist() if row_id in living]
        vectors = table.read_embeddings(ids).astype(np.float16)
        assert [vector.tobytes() for vector in vectors] == [before[row_id] for row_id in ids]

    def is_there(self) -> bool:
        return (self.index / "manifest.json").exists()

    def die(self, fatal: int, mode: str, act: Callable[[], object]) -> None:
        """Fail at the disk operation of this number, and check that what is left can be read."""
        try:
            with install_disk(FaultyDisk(fatal, mode)):
                act()
        except (Killed, Fwd2BotError, OSError):
            pass
        if self.is_there():
            ids = [row["id"] for row in read_all_rows(self.index)]
            assert ids == sorted(set(ids))
            EmbeddingTable.open(self.index).to_arrow()

    def compare_with_fresh(self, exclude: tuple[str, ...] = ()) -> None:
        """Compare with an index made anew: the same rows but for their ids, and no fault."""
        anew = Path(self.place.name, "anew")
        shutil.rmtree(anew, ignore_errors=True)
        build_index(self.root, anew, NoiseEncoder(), BuildSettings(exclude=exclude))
        ours, theirs = read_living(self.index), read_newest(anew)
        assert {path: strip(row) for path, row in ours.items()} == {
            path: strip(row) for path, row in theirs.items()
        }
        assert list(audit_index(self.index)) == []
        assert EmbeddingTable.open(self.index).ids.tolist() == [
            row["id"] for row in ours.values() if row["status"] == "ok"
        ]


def spoil(path: Path, where: int, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "lose":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: where % len(data)])
    else:
        data[where % len(data)] ^= 1 << where % 8
        path.write_bytes(data)


# HISTORIES=2000 looks for new ones; by default the same few are tried each time.
Histories.TestCase.settings = settings(
    max_examples=int(os.environ.get("HISTORIES", "15")),
    stateful_step_count=25,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # shrinking takes minutes
    derandomize="HISTORIES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestHistories = Histories.TestCase
