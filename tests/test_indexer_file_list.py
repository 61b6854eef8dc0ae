"""A listing in columns behaves like a list of its files."""

from random import Random

import numpy as np
import pytest

from indexer.file_list import FileCollector, FileList
from indexer.images import ImageFile

_COUNT = 9000  # more than are collected per batch


@pytest.fixture(scope="module")
def files() -> list[ImageFile]:
    random = Random(0)
    alphabet = "ab/é漢\U0001f4f7\\xff\n"
    names = {"".join(random.choices(alphabet, k=random.randint(1, 12))) for _ in range(2 * _COUNT)}
    edges = (-(2**63) + 1, 0, 2**63 - 1)
    return [ImageFile(name, random.randrange(2**63), random.choice(edges)) for name in sorted(names)[:_COUNT]]


def collect(files: list[ImageFile]) -> FileList:
    shuffled = Random(1).sample(files, len(files))
    collector = FileCollector()
    collector.extend(shuffled[:-1])
    collector.append(shuffled[-1])
    return collector.sort()


def test_files_are_kept_whole_and_sorted_as_python_sorts_them(files: list[ImageFile]) -> None:
    listed = collect(files)
    assert len(listed) == _COUNT
    assert list(listed) == sorted(files) == files


def test_a_place_and_a_slice_are_those_of_a_list(files: list[ImageFile]) -> None:
    listed = collect(files)
    assert [listed[place] for place in (0, 17, -1, -_COUNT)] == [
        files[place] for place in (0, 17, -1, -_COUNT)
    ]
    assert list(listed[5000:100:-7]) == files[5000:100:-7] and not listed[:0]
    assert list(listed.take(np.array([8, 3]))) == [files[8], files[3]]
    with pytest.raises(IndexError):
        listed[_COUNT]


def test_nothing_found_is_an_empty_list() -> None:
    empty = FileCollector().sort()
    assert not empty and list(empty) == []
