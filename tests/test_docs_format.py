"""The examples in docs/index-format.md and docs/python.md work."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from indexer.build import build as build_index
from indexer.columns import build_schema
from indexer.manifest import read_manifest
from indexer.table import EmbeddingTable
from tests.conftest import FakeEncoder, build, paint

DOCUMENT = Path(__file__).parents[1] / "docs/index-format.md"
PYTHON = DOCUMENT.with_name("python.md")
BLOCKS = {
    name: code
    for document in (DOCUMENT, PYTHON)
    for name, code in re.findall(
        r"```python (\w+)\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL
    )
}


@pytest.fixture
def table(gallery: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch) -> EmbeddingTable:
    """An index with dead rows; the current folder is its gallery."""
    build(gallery, encoder)
    (gallery / "red.png").rename(gallery / "moved.png")
    (gallery / "blue.png").write_bytes(b"")
    paint(gallery / "white.png", "black", size=(9, 9))
    build_index(gallery, gallery / ".fwd2bot", encoder)
    monkeypatch.chdir(gallery)
    return EmbeddingTable.open(gallery / ".fwd2bot")


def run_blocks(*names: str) -> dict:
    scope: dict = {}
    for name in names:
        exec(compile(BLOCKS[name], f"{DOCUMENT.name}:{name}", "exec"), scope)
    return scope


@pytest.mark.parametrize("library", ["duckdb", "polars", "pandas"])
def test_each_library_reads_the_images_that_count(table: EmbeddingTable, library: str) -> None:
    pytest.importorskip(library)
    images = run_blocks("parts", library)["images"]
    images = images.read_all() if hasattr(images, "read_all") else images
    assert [int(row_id) for row_id in images["id"].__iter__() if row_id is not None] == table.ids.tolist()
    assert [str(path) for path in images["path"]] == table.paths


def test_fwd2bot_reads_its_own_index(table: EmbeddingTable) -> None:
    scope = run_blocks("fwd2bot")
    assert scope["images"]["path"].to_pylist() == table.paths
    assert scope["images"].column_names == ["id", "path", "camera", "embedding"]
    assert scope["tokens"].shape == (2, 4, 8)


def test_plain_numpy_and_faiss_read_tokens_and_neighbours(table: EmbeddingTable) -> None:
    scope = run_blocks("parts", "tokens", "faiss")
    assert np.array_equal(scope["tokens"], table.read_summaries([scope["row"]["id"]])[0])
    assert set(scope["ids"][0]) <= set(table.ids.tolist())
    best = table.vectors[table.ids.tolist().index(scope["ids"][0, 0])]
    assert np.allclose(best.astype(np.float32), scope["query"][0], atol=1e-3)


def test_every_column_and_key_is_explained(table: EmbeddingTable) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    manifest = read_manifest(table.index_dir)
    explained = set(re.findall(r"`(\w+)`", text))
    assert set(build_schema(manifest).names) <= explained
    assert set(vars(manifest)) | set(vars(manifest.parts[0])) | set(vars(manifest.faiss)) <= explained


def test_a_program_can_build_observe_search_and_ask(
    gallery: Path,
    encoder: FakeEncoder,
    installed_encoder: Callable[[FakeEncoder], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    installed_encoder(encoder)
    gallery.rename(gallery.with_name("photos"))
    monkeypatch.chdir(gallery.parent)
    scope = run_blocks("build", "observe", "search", "ask")
    assert scope["report"].reused == 8 and scope["counter"].left == 0
    assert len(scope["hits"]) == 5 and len(scope["vectors"]) == len(scope["columns"]) == 8
    _, captioned, answered = capsys.readouterr().out.splitlines()
    assert captioned.startswith("something ") and answered.startswith("How many dogs are there? ")
