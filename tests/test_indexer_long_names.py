"""Names of any length, as in archives and on web servers: an index takes none that it could not read back."""

from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from indexer.audit import audit_index
from indexer.images import LONGEST_NAME
from indexer.sources import open_source
from tests.conftest import FakeEncoder, build, open_table
from tests.test_indexer_archives import PACKERS, draw_bytes

TOO_LONG = ["x" * LONGEST_NAME + ".png", "é" * (LONGEST_NAME // 2) + ".png", "a\\" * 1000 + ".png"]
LONGEST = "x" * (LONGEST_NAME - 4) + ".png"


@pytest.mark.parametrize("suffix", PACKERS)
def test_names_longer_than_any_file_has_are_left_out_of_an_archive_in_one_line(
    tmp_path: Path, suffix: str
) -> None:
    PACKERS[suffix](tmp_path / f"a.{suffix}", dict.fromkeys([*TOO_LONG, LONGEST, "b.png"], b"x"))
    found = open_source(tmp_path).find()
    assert [file.path for file in found.files] == [f"a.{suffix}/b.png", f"a.{suffix}/{LONGEST}"]
    ((path, reason),) = found.refused
    assert path == f"a.{suffix}" and "xxx and 2 more, as" in reason and "too long" in reason
    assert len(reason) < 300


def test_paths_longer_than_any_file_has_are_left_out_behind_a_url_in_one_line() -> None:
    url, files = f"memory://{uuid4().hex}", fsspec.filesystem("memory")
    for name in (*TOO_LONG, LONGEST, "b.png"):
        files.pipe_file(f"{url}/{name}", b"x")
    found = open_source(url).find()
    files.rm(url, recursive=True)
    assert [file.path for file in found.files] == ["b.png", LONGEST]
    ((path, reason),) = found.refused
    assert reason == "a path of over 4,096 bytes is not read, nor are 2 more: rename it there"
    assert len(path) < 300


@pytest.mark.parametrize("count", [1, 130])
def test_an_index_reads_the_longest_names_that_it_takes(
    tmp_path: Path, encoder: FakeEncoder, count: int
) -> None:
    deep = tmp_path.joinpath(*["\\" * 250] * 14)  # each backslash is stored as four bytes
    deep.mkdir(parents=True)
    names = [f"{number:03}{LONGEST[3:]}" for number in range(count)]
    PACKERS["tar"](deep / "a.tar", {name: draw_bytes() for name in names})
    build(tmp_path, encoder)
    assert sorted(path[-LONGEST_NAME:] for path in open_table(tmp_path).paths) == names
    assert list(audit_index(tmp_path / ".fwd2bot")) == []
