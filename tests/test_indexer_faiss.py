"""Nearest neighbours: exact and approximate, built from a stream, updated in place, stored in a file."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from encoders.base import IndexDamaged
from indexer import faiss_gpu, faiss_index, faiss_recipe, faiss_search
from indexer.faiss_file import load_faiss, save_faiss
from indexer.faiss_index import FaissIndex, VectorBlocks, build_faiss, read_faiss_ids, update_faiss
from indexer.faiss_recipe import count_lists, count_probes, is_outgrown
from indexer.faiss_search import search_faiss, select_for_faiss
from tests.conftest import to_unit


@pytest.fixture
def few_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_recipe, "EXACT_LIMIT", 1000)


def random_units(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return to_unit(np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32))


def clustered_units(count: int, dim: int = 32) -> np.ndarray:
    centres = random_units(50, dim)[np.arange(count) % 50]
    return to_unit(centres + 0.1 * random_units(count, dim, seed=2)).astype(np.float16)


def stream(vectors: np.ndarray, ids: np.ndarray) -> VectorBlocks:
    """Blocks of 700 rows; the last one may be smaller."""

    def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(ids), 700):
            yield ids[start : start + 700], vectors[start : start + 700].astype(np.float16)

    return read


def build(vectors: np.ndarray, ids: np.ndarray) -> FaissIndex:
    return build_faiss(stream(vectors, ids), len(ids), vectors.shape[1])


def list_ids(found: list[list[tuple[int, float]]]) -> list[list[int]]:
    return [[image_id for image_id, _ in hits] for hits in found]


def rank_exactly(vectors: np.ndarray, ids: np.ndarray, queries: np.ndarray, k: int) -> list[list[int]]:
    scores = queries @ vectors.astype(np.float16).astype(np.float32).T
    return ids[np.argsort(-scores, axis=1)[:, :k]].tolist()


def measure_recall(found: list[list[tuple[int, float]]], exact: list[list[int]]) -> float:
    pairs = zip(list_ids(found), exact, strict=True)
    return float(np.mean([len(set(ours) & set(theirs)) / len(theirs) for ours, theirs in pairs]))


@pytest.mark.parametrize("queries", [1, 40])
def test_the_exact_index_is_the_argsort_of_float16_vectors(tmp_path: Path, queries: int) -> None:
    vectors, asked = random_units(2000, 24), random_units(queries, 24, seed=1)
    ids = np.arange(2000, dtype=np.int64) * 3 + 7
    record = save_faiss(build(vectors, ids), tmp_path / "index-000001.faiss", next_id=9)
    found = search_faiss(load_faiss(tmp_path, record, 24), asked, 10)
    assert list_ids(found) == rank_exactly(vectors, ids, asked, 10)
    scores = np.sort(asked @ vectors.astype(np.float16).astype(np.float32).T, axis=1)[:, :-11:-1]
    assert np.allclose([[score for _, score in hits] for hits in found], scores, atol=1e-5)


@pytest.mark.usefixtures("few_are_exact")
def test_a_large_index_finds_nearly_what_the_exact_one_does(tmp_path: Path) -> None:
    vectors, ids = clustered_units(3000), np.arange(3000, dtype=np.int64) + 11
    index = build(vectors, ids)
    record = save_faiss(index, tmp_path / "index-000001.faiss", next_id=9)
    queries = to_unit(vectors[:100].astype(np.float32))
    found = search_faiss(load_faiss(tmp_path, record, 32), queries, 10)
    assert measure_recall(found, rank_exactly(vectors, ids, queries, 10)) > 0.9
    plain = faiss.read_index(str(tmp_path / record.name))
    assert plain.search(queries[:1], 1)[1].tolist() == [[11]] and plain.nprobe > 1
    assert read_faiss_ids(index).tolist() == ids.tolist()


@pytest.mark.usefixtures("few_are_exact")
@pytest.mark.parametrize("count", [900, 3000])
def test_an_index_changed_in_place_is_the_one_built_anew(count: int) -> None:
    vectors, ids = clustered_units(count), np.arange(count, dtype=np.int64) * 2
    index = build(vectors[: count - 90], ids[: count - 90])
    gone = ids[5:300:7]
    update_faiss(index, stream(vectors[count - 90 :], ids[count - 90 :]), gone)
    left = np.isin(ids, gone, invert=True)
    assert read_faiss_ids(index).tolist() == ids[left].tolist()
    queries = to_unit(vectors[::31].astype(np.float32))
    found = search_faiss(index, queries, 10)
    assert measure_recall(found, rank_exactly(vectors[left], ids[left], queries, 10)) > 0.9
    assert not {image_id for hits in found for image_id, _ in hits} & set(gone.tolist())


@pytest.mark.usefixtures("few_are_exact")
def test_an_index_is_built_anew_when_it_has_outgrown_its_training() -> None:
    assert not is_outgrown(trained=0, count=1000) and is_outgrown(trained=0, count=1001)
    assert not is_outgrown(trained=2000, count=8000) and is_outgrown(trained=2000, count=8001)
    assert not is_outgrown(trained=8000, count=2000) and is_outgrown(trained=8000, count=1999)


def test_parts_that_hold_fewer_embeddings_than_images_are_damaged() -> None:
    with pytest.raises(IndexDamaged, match="5 embeddings of 6 images"):
        build_faiss(stream(random_units(5, 4), np.arange(5)), 6, 4)


def test_lists_grow_with_the_root_of_the_gallery_and_probes_with_theirs() -> None:
    assert [count_lists(count) for count in (250_000, 1_000_000, 10_000_000)] == [2048, 4096, 16384]
    assert count_probes(4) == 4
    assert count_probes(16384) > count_probes(4096) > count_probes(256)


@pytest.mark.usefixtures("few_are_exact")
@pytest.mark.parametrize("count", [40, 1400])
def test_equal_scores_come_in_the_order_of_their_ids(count: int) -> None:
    ids = np.random.default_rng(0).permutation(count)
    index = build(np.ones((count, 4), np.float32) / 2, ids)
    for queries in (1, 20):
        found = search_faiss(index, np.ones((queries, 4), np.float32), 9)
        assert list_ids(found) == [list(range(9))] * queries


@pytest.mark.usefixtures("few_are_exact")
@pytest.mark.parametrize("count", [900, 3000])
@pytest.mark.parametrize("kept", [1, 7, 400])
def test_among_some_ids_those_are_found_that_an_index_of_them_finds(count: int, kept: int) -> None:
    vectors, ids = (
        clustered_units(count),
        np.arange(count, dtype=np.int64) * 3 + (7 << 50),
    )  # more than memory has bits
    rows = np.sort(np.random.default_rng(0).permutation(count)[:kept])
    queries, index = to_unit(vectors[:60].astype(np.float32)), build(vectors, ids)
    for asked in (queries[:1], queries):
        found = search_faiss(index, asked, 10, select_for_faiss(ids[rows]))
        assert measure_recall(found, rank_exactly(vectors[rows], ids[rows], asked, 10)) > 0.9
        assert {len(hits) for hits in found} == {min(kept, 10)}
        assert {image_id for hits in found for image_id, _ in hits} <= set(ids[rows].tolist())
    assert search_faiss(index, queries[:2], 10, select_for_faiss(ids[:0])) == [[], []]


def test_nothing_invents_an_id() -> None:
    index = build(np.ones((5, 4), np.float32) / 2, np.array([9, 3, 7, 1, 5]))
    assert list_ids(search_faiss(index, np.ones((1, 4), np.float32), 50)) == [[1, 3, 5, 7, 9]]
    empty = build(np.zeros((0, 4), np.float16), np.zeros(0, np.int64))
    assert search_faiss(empty, np.ones((2, 4), np.float32), 3) == [[], []]


@pytest.mark.usefixtures("few_are_exact")
def test_more_results_than_the_probed_lists_hold_are_found_in_others() -> None:
    vectors, ids = clustered_units(3000), np.arange(3000, dtype=np.int64)
    (hits,) = search_faiss(build(vectors, ids), vectors[:1].astype(np.float32), 3000)
    assert sorted(image_id for image_id, _ in hits) == ids.tolist()


LOAD_MUTANTS = """
import resource, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import numpy as np

from encoders.base import IndexDamaged
from indexer.durable import digest_file
from indexer.faiss_file import load_faiss
from indexer.faiss_index import read_faiss_ids
from indexer.faiss_search import search_faiss, select_for_faiss
from indexer.manifest import FaissRecord

path, rows, trained = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
whole = path.read_bytes()
places = [place for place in range(len(whole) - 8) if place % (2 if place < 200 else 499) == 0]
refused = opened = 0
limit = 1 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def load(content, mapped):
    path.write_bytes(content)
    record = FaissRecord(path.name, len(content), digest_file(path), rows, rows, trained)
    index = load_faiss(path.parent, record, 8, mapped)
    search_faiss(index, np.ones((2, 8), np.float32), 5)
    read_faiss_ids(index)


load(whole, mapped=True)
for place in places:
    for value in (0, (1 << 31) + 7, (1 << 64) - 1):
        try:
            load(whole[:place] + value.to_bytes(8, "little") + whole[place + 8 :], mapped=value % 2 == 0)
            opened += 1
        except IndexDamaged as error:
            assert len(str(error).splitlines()) == 1, error
            refused += 1
    try:
        load(whole[:place], mapped=place % 2 == 0)
        raise SystemExit(f"cut at {place}, it was opened")
    except IndexDamaged:
        pass
print(refused, opened)
"""


@pytest.mark.usefixtures("few_are_exact")
@pytest.mark.parametrize("count", [50, 1100])
def test_a_crafted_file_is_refused_or_searched_and_takes_no_memory(tmp_path: Path, count: int) -> None:
    """The manifest agrees with the file. Runs in its own process, because a failure would crash it."""
    index = build(random_units(count, 8), np.arange(count))
    record = save_faiss(index, tmp_path / "index-000001.faiss", next_id=count)
    arguments = [str(Path(__file__).parents[1]), str(tmp_path / record.name), str(count), str(record.trained)]
    done = subprocess.run(
        [sys.executable, "-c", LOAD_MUTANTS, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    refused, opened = map(int, done.stdout.split())
    assert refused > 100 and opened > 50


@pytest.mark.usefixtures("few_are_exact")
@pytest.mark.parametrize("count", [50, 1100])
def test_a_file_of_other_measures_than_the_manifest_says_is_refused(tmp_path: Path, count: int) -> None:
    index = build(random_units(count, 8), np.arange(count))
    record = save_faiss(index, tmp_path / "index-000001.faiss", next_id=count)
    assert load_faiss(tmp_path, record, 8).count == count
    for wrong, dim in (
        (record, 16),
        (replace(record, rows=count + 1), 8),
        (replace(record, trained=0 if record.trained else 9), 8),
    ):
        with pytest.raises(IndexDamaged, match="run `fwd2bot index DIR` to build it again") as caught:
            load_faiss(tmp_path, wrong, dim)
        assert "\n" not in str(caught.value)


def test_another_index_of_faiss_is_refused(tmp_path: Path) -> None:
    other = faiss.IndexFlatIP(8)
    other.add(random_units(20, 8))
    record = save_faiss(FaissIndex(other, trained=0), tmp_path / "index-000001.faiss", next_id=20)
    with pytest.raises(IndexDamaged, match="IxM2"):
        load_faiss(tmp_path, record, 8)


def test_many_queries_at_once_find_what_each_finds_alone() -> None:
    index = build(random_units(3000, 16), np.arange(3000))
    queries = random_units(faiss_search.BLAS_QUERIES, 16, seed=1)
    alone = [search_faiss(index, query[None], 10)[0] for query in queries]
    assert list_ids(search_faiss(index, queries, 10)) == list_ids(alone)


@pytest.mark.gpu
@pytest.mark.skipif(not faiss.get_num_gpus(), reason="no GPU")
@pytest.mark.usefixtures("few_are_exact")
@pytest.mark.parametrize("count", [900, 5000])
def test_the_gpu_finds_what_the_cpu_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    vectors, ids = clustered_units(count), np.arange(count, dtype=np.int64) * 3
    record = save_faiss(build(vectors, ids), tmp_path / "index-000001.faiss", next_id=9)
    index = load_faiss(tmp_path, record, 32)
    queries = random_units(faiss_gpu.GPU_QUERIES, 32, seed=1)
    on_gpu = search_faiss(index, queries, 10)
    assert index.gpu is not None
    monkeypatch.setattr(faiss_gpu, "has_gpu", lambda: False)
    on_cpu = search_faiss(load_faiss(tmp_path, record, 32), queries, 10)
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        assert np.allclose([score for _, score in ours], [score for _, score in theirs], atol=1e-4)
    same = [ours == theirs for ours, theirs in zip(list_ids(on_gpu), list_ids(on_cpu), strict=True)]
    assert np.mean(same) > 0.98  # scores that differ by less than rounding may swap places


@pytest.mark.usefixtures("few_are_exact")
def test_a_mapped_file_is_given_back_page_by_page_and_found_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, ids = clustered_units(3000), np.arange(3000, dtype=np.int64)
    record = save_faiss(build(vectors, ids), tmp_path / "index-000001.faiss", next_id=9)
    queries = random_units(40, 32, seed=1)
    found = search_faiss(load_faiss(tmp_path, record, 32, mapped=False), queries, 10)
    limit = record.size // 8
    for module in (faiss_index, faiss_search):
        monkeypatch.setattr(module, "MOST_TOUCHED", limit)
    mapped = load_faiss(tmp_path, record, 32)
    assert list_ids(search_faiss(mapped, queries, 10)) == list_ids(found)
    assert mapped.pages is not None and mapped.touched <= limit
