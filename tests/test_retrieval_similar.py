"""The images most like one: an indexed image by its stored vector, any other file through the model."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from encoders.base import EncoderMismatch, QueryError
from indexer.build import BuildSettings, build
from indexer.table import EmbeddingTable
from retrieval.find_image import find_path
from retrieval.gallery import Gallery
from retrieval.search import Searcher
from tests.conftest import FakeEncoder, paint, run

Install = Callable[[FakeEncoder], None]


@pytest.fixture
def shades(here: Path) -> Path:
    """The indexed gallery, with three ever darker shades of red and a copy of `red.png`."""
    for number, level in enumerate((240, 220, 200)):
        paint(here / f"shade{number}.png", (level, 0, 0))
    (here / "below/copy.png").write_bytes((here / "red.png").read_bytes())
    assert run("index", ".").exit_code == 0
    return here


def test_the_most_alike_come_first_without_the_image_itself(shades: Path) -> None:
    lines = run("similar", "red.png", "-k", "4").stdout.splitlines()
    assert lines[0] == "1.0000\tbelow/copy.png"
    assert [line.split("\t")[1] for line in lines[1:]] == [f"shade{number}.png" for number in range(3)]
    assert run("similar", "red.png", "-0", "-k", "1").stdout == "below/copy.png\0"
    assert run("similar", "red.png", "--paths", "--min-score", "0.9999").stdout == "below/copy.png\n"
    best = json.loads(run("similar", "red.png", "--json").stdout.splitlines()[0])
    assert best["path"] == "below/copy.png" and best["rank"] == 1 and best["width"] == 48


def test_it_is_the_argsort_of_the_stored_vectors(shades: Path) -> None:
    table = EmbeddingTable.open(shades / ".fwd2bot")
    vectors = table.vectors.astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (table.read_embeddings(table.ids[::-1].tolist())[::-1] == table.vectors).all()
    for opened in (Gallery.open(shades), Searcher.open(shades)):
        for place, image_id in enumerate(table.ids.tolist()):
            scores = vectors @ vectors[place]
            order = [other for other in np.lexsort((table.ids, -scores)) if other != place]
            hits = opened.search_image(image_id, 5)
            assert np.allclose([hit.score for hit in hits], scores[order[:5]], atol=1e-3)
            assert image_id not in [hit.id for hit in hits]


def test_an_image_is_found_through_a_link_to_its_folder(
    shades: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(shades)
    monkeypatch.chdir(tmp_path)
    table = EmbeddingTable.open(shades / ".fwd2bot")
    assert find_path(table, "link/red.png") == find_path(table, str(shades / "red.png")) is not None


def test_no_score_is_over_1_though_stored_vectors_are_rounded(here: Path) -> None:
    for level in range(40):
        paint(here / f"{level}.png", (level, 255 - 6 * level, 3 * level))
    assert run("index", ".").exit_code == 0
    vectors = EmbeddingTable.open(here / ".fwd2bot").vectors.astype(np.float32)
    assert (np.linalg.norm(vectors, axis=1) > 1).any()
    gallery = Gallery.open(here)
    for sign in (1, -1):
        scores = [hit.score for row in gallery.search_vectors(sign * vectors, len(gallery)) for hit in row]
        assert 0.999 < sign * max(scores, key=lambda score: sign * score) <= 1


def test_a_file_of_the_index_may_be_gone_and_needs_no_model(
    shades: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shades / "red.png").unlink()
    monkeypatch.setitem(sys.modules, "encoders.load", None)  # importing it fails
    assert run("similar", "red.png", "--paths", "-k", "1").stdout == "below/copy.png\n"
    image_id = str(Gallery.open(shades).search_image("copy.png", 1)[0].id)
    assert run("similar", image_id, "--paths", "-k", "1").stdout == "below/copy.png\n"


def test_any_other_file_is_read_as_the_index_reads(shades: Path, tmp_path: Path) -> None:
    outside = paint(tmp_path / "elsewhere/green.png", (0, 250, 0), size=(90, 30))
    assert run("similar", str(outside), "--paths", "-k", "1").stdout == "below/green.png\n"
    paint(shades / "new.png", (0, 0, 250))  # in the folder, but not yet in the index
    assert run("similar", "new.png", "--paths", "-k", "1").stdout == "blue.png\n"


def test_a_file_that_is_there_goes_before_a_path_that_ends_so(
    shades: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(tmp_path / "away/green.png", "blue")
    monkeypatch.chdir(tmp_path / "away")
    (path,) = run("similar", "green.png", "--index", str(shades), "--paths", "-k", "1").stdout.splitlines()
    assert path == str(shades / "blue.png")


def test_a_search_for_the_name_of_a_file_says_which_command_was_meant(shades: Path) -> None:
    (shades / "red.png").rename(shades / "my red.png")
    assert run("search", "my red.png").stderr.endswith("fwd2bot similar 'my red.png'\n")
    (shades / "red").touch()
    assert run("search", "red").stderr == ""
    assert run("search", "red", "my red.png").stderr == ""
    assert run("search", "red " * 2000).exit_code == run("search", "re\0d").exit_code == 0


def test_what_is_no_image_is_one_sentence(shades: Path, tmp_path: Path, installed_encoder: Install) -> None:
    text = tmp_path / "letter.png"
    text.write_text("Dear sir")
    for name, sentence in (
        (str(text), r"letter\.png cannot be read as an image \(not an image of a known format\)"),
        ("nothing.png", "has no image nothing.png"),
        ("a" * 300, "has no image aaa"),
        ("a\0b.png", "has no image a"),
        ("", "the name of the image is empty"),
        ("999", "no image with the id 999"),
    ):
        with pytest.raises(QueryError, match=sentence):
            run("similar", name)
    installed_encoder(FakeEncoder(fingerprint="fake-2"))
    with pytest.raises(EncoderMismatch, match=r"fake-1.*fake-2"):
        run("similar", str(paint(tmp_path / "new.png", "red")))
    with pytest.raises(QueryError, match="0 results"):
        Gallery.open(shades).search_image("red.png", 0)
    assert run("similar", "red.png", "--json", "-0").exit_code == 2


def test_a_refused_image_is_told_of_no_option_that_only_indexing_has(
    shades: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.decode.DEFAULT_MAX_MEGAPIXELS", 0.001)
    with pytest.raises(QueryError, match=r"\(0\.01 megapixels are over the limit of 0\.001\): give another"):
        run("similar", str(paint(tmp_path / "new.png", "red", size=(100, 100))))


def test_more_copies_than_are_asked_for_leave_the_image_out_all_the_same(
    here: Path, encoder: FakeEncoder
) -> None:
    for number in range(30):
        (here / f"a{number}.png").write_bytes((here / "red.png").read_bytes())
    build(here, here / ".fwd2bot", encoder, BuildSettings())
    for name in ("red.png", "a29.png", "a0.png"):
        hits = Gallery.open(here).search_image(name, 3)
        assert len(hits) == 3 and name not in [hit.path for hit in hits]
