"""From a sentence to images, and from an image to words, using what the index keeps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike

from encoders.base import CannotAnswer, EncoderMismatch, IndexDamaged, IndexNotFound, QueryError
from indexer.audit import audit_index, describe_index
from indexer.build import BuildSettings, plan_build
from indexer.build import build as build_index
from indexer.compact import compact_index
from indexer.manifest import read_manifest, write_manifest
from indexer.merge import create_above, merge_index
from indexer.repair import repair_index
from indexer.table import EmbeddingTable
from retrieval.ask import ask, caption
from retrieval.find_image import find_image
from retrieval.locate import choose_model, find_index
from retrieval.query import clean_query
from retrieval.search import Searcher
from tests.conftest import PALETTE, FakeEncoder, paint

Install = Callable[[FakeEncoder], None]


@pytest.fixture
def index_dir(gallery: Path, encoder: FakeEncoder, installed_encoder: Install) -> Path:
    installed_encoder(encoder)
    build_index(gallery, gallery / ".fwd2bot", encoder)
    return gallery / ".fwd2bot"


def test_a_place_may_be_a_string_and_that_of_an_index_its_folder(
    gallery: Path, encoder: FakeEncoder, installed_encoder: Install
) -> None:
    installed_encoder(encoder)
    folder, index_dir = str(gallery), str(gallery / ".fwd2bot")
    assert build_index(folder, index_dir, encoder).indexed == len(plan_build(folder, index_dir).fresh) + 8
    assert compact_index(index_dir).parts == describe_index(index_dir).parts == 1
    assert list(audit_index(index_dir)) == repair_index(index_dir) == []
    create_above(f"{gallery}/other", index_dir, index_dir)
    assert merge_index(f"{gallery}/other", index_dir).added == 8
    table = EmbeddingTable.open(index_dir)
    for place in (folder, gallery, index_dir):
        assert len(Searcher.open(place).search("red")) == 8
        for image in ("red.png", Path("red.png"), int(table.ids[table.paths.index("red.png")])):
            assert caption(place, image) == ask(place, image, "something") == "something red"


@pytest.mark.parametrize("word", PALETTE)
def test_the_image_that_fits_comes_first(index_dir: Path, word: str) -> None:
    hit = Searcher.open(index_dir).search(f"something {word}", 3)[0]
    assert Path(hit.path).stem == word
    assert (hit.width, hit.height) == (48, 40)


def test_search_is_the_argsort_of_the_stored_vectors(index_dir: Path, encoder: FakeEncoder) -> None:
    for number in range(40):
        colour = tuple(np.random.default_rng(number).integers(0, 255, 3).tolist())
        paint(index_dir.parent / f"mixed{number}.png", colour)
    build_index(index_dir.parent, index_dir, encoder)
    queries = encoder.encode_texts(["red white", "blue", "cyan black", "nothing"])
    table = EmbeddingTable.open(index_dir)
    scores = queries @ table.vectors.astype(np.float32).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :7]
    hits = Searcher.open(index_dir).search_vectors(queries, 7)
    found = np.array([[hit.score for hit in row] for row in hits])
    assert np.allclose(found, np.take_along_axis(scores, order, axis=1), atol=1e-5)
    by_id = dict(zip(table.ids.tolist(), table.paths, strict=True))
    for row, expected in zip(hits, order, strict=True):
        assert [hit.path for hit in row] == [by_id[hit.id] for hit in row]
        assert (
            abs(scores[:, expected] - scores[:, np.searchsorted(table.ids, [h.id for h in row])]).max() < 1e-5
        )


def test_vectors_of_any_length_and_type_are_scored_by_cosine(index_dir: Path, encoder: FakeEncoder) -> None:
    searcher, rows = Searcher.open(index_dir), encoder.encode_texts(["red", "blue white"])
    expected = searcher.search_vectors(rows)
    for vectors in (
        rows * 1000,
        rows.astype(np.float64) / 1e30,
        (4 * rows / rows.max()).astype(int).tolist(),
    ):
        for hits, others in zip(searcher.search_vectors(vectors), expected, strict=True):
            assert np.allclose([hit.score for hit in hits], [hit.score for hit in others], atol=1e-6)
    assert searcher.search_vectors(np.empty((0, encoder.dim))) == []


@pytest.mark.parametrize(
    ("vectors", "sentence"),
    [
        (np.ones((1, 7)), r"of shape \(1, 7\): give float rows of shape \(n, 8\)"),
        (np.ones(8), r"of shape \(8,\): give"),
        ([["red"] * 8], "not numbers"),
        ([[1.0] * 8, [1.0] * 7], "not numbers"),
        ([[1.0] * 7 + [np.nan]], "NaN"),
        ([[1.0] * 7 + [np.inf]], "infinity"),
        (np.zeros((1, 8)), "nothing but zeros"),
    ],
)
def test_vectors_that_are_near_to_nothing_are_refused(
    index_dir: Path, vectors: ArrayLike, sentence: str
) -> None:
    with pytest.raises(QueryError, match=sentence):
        Searcher.open(index_dir).search_vectors(vectors)


def test_no_more_is_returned_than_there_is(index_dir: Path) -> None:
    assert len(Searcher.open(index_dir).search("red", 100)) == 8
    with pytest.raises(QueryError, match="0 results"):
        Searcher.open(index_dir).search("red", 0)


def test_a_removed_image_is_found_no_more(index_dir: Path, encoder: FakeEncoder) -> None:
    (index_dir.parent / "red.png").unlink()
    build_index(index_dir.parent, index_dir, encoder)
    assert "red.png" not in [hit.path for hit in Searcher.open(index_dir).search("red", 100)]


def test_what_a_killed_run_committed_is_found_without_a_faiss_file(index_dir: Path) -> None:
    expected = Searcher.open(index_dir).search("red", 8)
    write_manifest(index_dir, replace(read_manifest(index_dir), faiss=None))
    assert Searcher.open(index_dir).search("red", 8) == expected


def test_a_reader_sees_its_index_whole_while_a_run_ends(index_dir: Path, encoder: FakeEncoder) -> None:
    searcher = Searcher.open(index_dir)
    paint(index_dir.parent / "new.png", "red")
    build_index(index_dir.parent, index_dir, encoder)
    assert len(searcher.search("red", 100)) == 8
    assert len(Searcher.open(index_dir).search("red", 100)) == 9


@pytest.mark.parametrize("covered", [True, False])
def test_a_run_that_ends_while_a_reader_opens_is_followed(
    index_dir: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch, covered: bool
) -> None:
    read_by = read_manifest(index_dir)
    paint(index_dir.parent / "new.png", "red", size=(9, 9))
    (index_dir.parent / "blue.png").unlink()
    build_index(index_dir.parent, index_dir, encoder)
    if covered:  # the files that the old manifest names are gone
        compact_index(index_dir)
    else:  # they are all there, beside rows that it does not name
        read_by = replace(read_by, faiss=None)
    monkeypatch.setattr("retrieval.gallery.read_manifest", lambda index_dir: read_by)
    paths = {hit.path for hit in Searcher.open(index_dir).search("red", 100)}
    assert ("new.png" in paths, "blue.png" in paths) == (covered, not covered) and len(paths) == 8


def test_a_model_that_has_changed_is_refused(index_dir: Path, installed_encoder: Install) -> None:
    installed_encoder(FakeEncoder(fingerprint="fake-2"))
    with pytest.raises(EncoderMismatch, match=r"fake-1.*fake-2.*--rebuild"):
        Searcher.open(index_dir)


def test_a_damaged_faiss_file_is_built_again_by_the_next_run(index_dir: Path, encoder: FakeEncoder) -> None:
    (path,) = index_dir.glob("*.faiss")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(IndexDamaged, match="run `fwd2bot index DIR`"):
        Searcher.open(index_dir)
    assert build_index(index_dir.parent, index_dir, encoder).indexed == 0
    assert len(Searcher.open(index_dir).search("red", 8)) == 8


@pytest.mark.parametrize("words", ["", "   ", [], ["", " \n"], b"\xff".decode("utf-8", "surrogateescape")])
def test_a_query_without_words_is_refused(words: str | list[str]) -> None:
    with pytest.raises(QueryError, match="no words"):
        clean_query(words)


def test_a_query_is_its_words_with_single_spaces() -> None:
    assert clean_query(["  two", "dogs \n on", "a\tbeach "]) == "two dogs on a beach"


def test_an_index_is_found_upwards_or_where_it_is_given(index_dir: Path, tmp_path: Path) -> None:
    gallery = index_dir.parent
    assert find_index(start=gallery / "below") == index_dir
    assert find_index(start=gallery) == index_dir
    assert find_index(gallery, tmp_path) == find_index(index_dir, tmp_path) == index_dir
    with pytest.raises(IndexNotFound, match="or above"):
        find_index(start=tmp_path)
    with pytest.raises(IndexNotFound, match=str(tmp_path)):
        find_index(tmp_path, gallery)


@pytest.mark.parametrize("prefix", ["", "lvlm:", "st:"])
def test_a_model_in_a_folder_is_named_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    (tmp_path / "models/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "models")
    for name in ("mine", "./mine", "../models/mine", str(tmp_path / "models/mine")):
        assert choose_model(tmp_path, f"{prefix}{name}", False) == f"{prefix}{tmp_path}/models/mine"
    for name in ("organisation/model", "none"):  # may be on the hub
        assert choose_model(tmp_path, f"{prefix}{name}", False) == f"{prefix}{name}"
    assert choose_model(tmp_path, "openclip:mine", False) == "openclip:mine"
    for name in ("tiny", prefix):  # the embedded model, whatever folders there are, and an empty name
        (tmp_path / "models/tiny").mkdir(exist_ok=True)
        assert choose_model(tmp_path, name, False) == name


def test_an_image_can_be_talked_about_when_its_file_is_gone(index_dir: Path) -> None:
    (index_dir.parent / "red.png").unlink()
    assert caption(index_dir, "red.png") == "something red"
    assert ask(index_dir, "red.png", " what colour? ") == "what colour? red"


@pytest.mark.parametrize("name", ["below/green.png", "green.png", "{gallery}/below/green.png"])
def test_an_image_is_named_by_path_or_the_end_of_it(index_dir: Path, name: str) -> None:
    table = EmbeddingTable.open(index_dir)
    expected = table.ids[table.paths.index("below/green.png")]
    assert find_image(table, name.format(gallery=index_dir.parent)) == expected
    assert find_image(table, str(expected)) == expected


def test_a_path_is_first_one_from_here(
    index_dir: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(index_dir.parent / "below/red.png", "blue")
    build_index(index_dir.parent, index_dir, encoder)
    monkeypatch.chdir(index_dir.parent / "below")
    assert caption(index_dir, "red.png") == "something blue"
    assert caption(index_dir, "../red.png") == "something red"


def test_a_name_of_many_or_of_none_is_refused(index_dir: Path, encoder: FakeEncoder) -> None:
    for folder in ("a", "b"):
        paint(index_dir.parent / folder / "same.png", "red")
    build_index(index_dir.parent, index_dir, encoder)
    table = EmbeddingTable.open(index_dir)
    with pytest.raises(QueryError, match=r"2 images, such as a/same.png and b/same.png"):
        find_image(table, "same.png")
    for name in ("nothing.png", "", "99", "9" * 5000, "ed.png", "\\x00.png"):
        with pytest.raises(QueryError, match="has no image" if name else "the name of the image is empty"):
            find_image(table, name)


def test_an_index_without_tokens_cannot_answer(gallery: Path, encoder: FakeEncoder) -> None:
    build_index(gallery, gallery / ".fwd2bot", encoder, BuildSettings(tokens="none"))
    with pytest.raises(CannotAnswer, match="keeps no summary tokens"):
        caption(gallery / ".fwd2bot", "red.png")


def test_a_model_that_cannot_talk_says_so(index_dir: Path, installed_encoder: Install) -> None:
    class Mute:
        name, fingerprint, dim, image_size, summary_shape = "mute", "fake-1", 8, 32, (4, 8)

    installed_encoder(Mute())  # type: ignore[arg-type]
    with pytest.raises(CannotAnswer, match="mute cannot talk"):
        caption(index_dir, "red.png")


def test_an_answer_does_not_look_for_the_best_batch_size(index_dir: Path, installed_encoder: Install) -> None:
    class Measured(FakeEncoder):
        @property
        def batch_size(self) -> int:
            raise AssertionError("hundreds of images were embedded to find it")

        @batch_size.setter
        def batch_size(self, size: int) -> None: ...

    installed_encoder(Measured())
    assert caption(index_dir, "red.png") == "something red"


def test_a_whole_index_has_no_fault_and_the_right_numbers(index_dir: Path, encoder: FakeEncoder) -> None:
    (index_dir.parent / "bad.png").write_bytes(b"")
    (index_dir.parent / "red.png").unlink()
    build_index(index_dir.parent, index_dir, encoder)
    assert list(audit_index(index_dir)) == []
    facts = describe_index(index_dir)
    assert (facts.images, facts.skipped, facts.removed) == (7, 1, 1)
    assert facts.size == sum(path.stat().st_size for path in _live_files(index_dir))


def _live_files(index_dir: Path) -> list[Path]:
    manifest = read_manifest(index_dir)
    assert manifest.faiss is not None
    return [index_dir / manifest.faiss.name, *(index_dir / "parts" / part.name for part in manifest.parts)]


def test_every_flipped_byte_is_found_by_an_audit(index_dir: Path) -> None:
    for path in _live_files(index_dir):
        whole = path.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 25)):
            content = bytearray(whole)
            content[place] ^= 0x55
            path.write_bytes(content)
            (fault,) = audit_index(index_dir)
            assert path.name in fault.sentence and "\n" not in fault.sentence
        path.write_bytes(whole)
    assert list(audit_index(index_dir)) == []
