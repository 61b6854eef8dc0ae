"""All kinds of index are built, searched and scored alike; where ours loses is computed, not chosen."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ann
from benchmarks.ann_kinds import KINDS, OURS, Ids, Kind, import_package
from benchmarks.ann_results import KindResult, Point, find_defeats
from benchmarks.scale import Collection
from encoders.base import FloatArray, MissingDependency
from indexer.build import BuildReport
from tests.conftest import FakeEncoder, build, paint

ROWS, DIM = 2000, 32


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.filterwarnings("ignore")  # from third-party libraries
def test_each_kind_finds_a_stored_vector_first_and_most_of_the_true_neighbours(
    kind: Kind, tmp_path: Path
) -> None:
    if find_spec(kind.package) is None:
        pytest.skip(f"{kind.package} is not installed")
    vectors = Collection(ROWS, DIM, 0).draw(0, ROWS)
    queries = vectors[:20]
    kind.build(vectors, tmp_path)
    search = kind.open(tmp_path)
    most = kind.efforts(ROWS)[-1]
    found = search(queries, 10, most)
    assert found.shape == (20, 10)
    assert (found[:, 0] == np.arange(20)).mean() >= 0.9
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    assert ann.find_recall(found, truth) > 0.7
    assert np.isin(search(queries[:1], 10, most)[0], found[0]).mean() >= 0.9


def test_recall_is_the_share_of_true_neighbours_wherever_they_stand() -> None:
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = np.array([[4, 3, 2, 1], [5, 9, -1, -1]])
    assert ann.find_recall(found, truth) == (1.0 + 0.25) / 2


def test_the_truth_is_that_of_all_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.ann_kinds._BLOCK", 300)  # many blocks
    ann.write_synthetic(tmp_path, 1000, 16, seed=1)
    ann.write_truth(tmp_path)
    base, queries = np.load(tmp_path / "base.npy"), np.load(tmp_path / "queries.npy")
    naive = np.argsort(-(queries @ base.T), axis=1)[:, :10]
    assert (np.sort(np.load(tmp_path / "truth.npy")) == np.sort(naive)).mean() > 0.999


def make_result(name: str, build: float, size: float, peak: float, *points: Point) -> KindResult:
    return KindResult(name, build, 0.0, size, 0.0, peak, list(points))


def test_ours_is_beaten_only_by_what_finds_as_much_and_is_clearly_better() -> None:
    kinds = [
        make_result(OURS, 10.0, 512.0, 100.0, Point("", 0.97, 1000.0, 2000.0)),
        make_result("careless", 1.0, 1.0, 1.0, Point("low", 0.80, 9000.0, 9000.0)),
        make_result(
            "near", 9.5, 1024.0, 90.0, Point("low", 0.5, 1e6, 1e6), Point("high", 0.965, 3000.0, 500.0)
        ),
    ]
    assert find_defeats(kinds, OURS) == [
        "queries/s alone: near high (recall 0.965) 3,000, fwd2bot 1,000",
        "peak MiB of searching: near high (recall 0.965) 90.0, fwd2bot 100.0",
    ]
    assert find_defeats(kinds[:2], OURS) == find_defeats(kinds[1:], OURS) == []


def test_memory_is_the_most_that_was_held_while_queries_were_answered(tmp_path: Path) -> None:
    ann.write_synthetic(tmp_path, 1000, 16, seed=1)
    ann.write_truth(tmp_path)
    held = [b"\1" * (256 << 20)]
    held.clear()  # an earlier peak, which must not count

    def search(queries: FloatArray, k: int, effort: str) -> Ids:
        held[:] = [] if held else [b"\1" * (64 << 20)]  # every other query frees all of it
        return np.zeros((len(queries), k), np.int64)

    kind = Kind("made", "numpy", lambda vectors, folder: None, lambda folder: search, lambda rows: [""])
    assert 60 < ann.search_kind(kind, tmp_path, tmp_path, 0.01)[1] < 200


def test_a_package_that_is_not_there_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(MissingDependency, match="pip install no_such_package"):
        import_package("no_such_package")


def make_index(tmp_path: Path) -> BuildReport:
    random = np.random.default_rng(0)
    for number in range(110):
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        paint(tmp_path / f"{number}.png", colour, (8, 8))  # type: ignore[arg-type]
    return build(tmp_path, FakeEncoder())


def test_queries_of_a_real_index_are_not_among_its_vectors(tmp_path: Path) -> None:
    make_index(tmp_path)
    ann.write_stored(tmp_path, tmp_path / ".fwd2bot")
    base, queries = np.load(tmp_path / "base.npy"), np.load(tmp_path / "queries.npy")
    assert (len(base), len(queries)) == (99, 11)
    assert (queries @ base.T).max() < 1 - 1e-6


def test_the_command_measures_in_processes_of_their_own_and_writes_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    arguments = ["--rows", "600", "--dim", "16", "--kinds", OURS, "FAISS Flat", "--seconds", "0.01"]
    assert ann.main([*arguments, "--json", str(out)]) == 0
    (collection,) = json.loads(out.read_text())["result"]["collections"]
    assert [kind["name"] for kind in collection["kinds"]] == [OURS, "FAISS Flat"]
    assert all(kind["points"][0]["recall_at_10"] > 0.99 for kind in collection["kinds"])
    assert 64 < collection["kinds"][1]["bytes_per_vector"] < 65  # float32 values, and a few bytes of overhead
    assert "recall@10" in capsys.readouterr().out


def test_an_index_of_few_images_is_refused(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(gallery, FakeEncoder())
    assert ann.main(["--index", str(gallery / ".fwd2bot")]) == 1
    assert "8 images" in capsys.readouterr().err
