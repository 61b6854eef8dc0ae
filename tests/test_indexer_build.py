"""A run over a folder: what it embeds, what it keeps, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoders.base import (
    CannotAnswer,
    EncoderError,
    EncoderMismatch,
    EncoderNotFound,
    ImageEmbeddings,
    IndexDamaged,
    IndexFailure,
    NothingToIndex,
)
from indexer.audit import audit_index
from indexer.build import BuildReport, BuildSettings, plan_build
from indexer.build import build as build_index
from indexer.compact import compact_index
from indexer.lazy import LazyEncoder
from indexer.manifest import read_manifest, write_manifest
from tests.conftest import PALETTE, FakeEncoder, Witness, build, open_table, paint


def refuse_to_load() -> FakeEncoder:
    raise AssertionError("the model was loaded without need")


def test_every_image_gets_the_embedding_of_the_encoder(gallery: Path, encoder: FakeEncoder) -> None:
    assert build(gallery, encoder) == BuildReport(indexed=8, copied=0, reused=0, removed=0, skipped=0)
    table = open_table(gallery)
    expected_paths = sorted(str(path.relative_to(gallery)) for path in gallery.rglob("*.png"))
    assert table.paths == expected_paths
    words = encoder.encode_texts([Path(path).stem for path in table.paths])
    assert (words @ table.vectors.astype(np.float32).T).argmax(axis=1).tolist() == list(range(8))
    assert table.vectors.dtype == np.float16


def test_a_second_run_embeds_nothing_and_never_loads_the_model(gallery: Path, encoder: FakeEncoder) -> None:
    build(gallery, encoder)
    before = (gallery / ".fwd2bot/manifest.json").read_bytes()
    assert build(gallery, LazyEncoder("tiny", refuse_to_load)) == BuildReport(0, 0, 8, 0, 0)
    assert (gallery / ".fwd2bot/manifest.json").read_bytes() == before


def test_a_run_embeds_only_what_changed(gallery: Path, encoder: FakeEncoder) -> None:
    build(gallery, encoder)
    first = open_table(gallery)
    kept_id = first.ids[first.paths.index("white.png")]
    paint(gallery / "new.png", "red")  # the same bytes as red.png
    paint(gallery / "red.png", "blue", size=(50, 50))
    (gallery / "blue.png").unlink()
    (gallery / "below/yellow.png").rename(gallery / "moved.png")
    encoder.embedded = 0
    assert build(gallery, encoder) == BuildReport(indexed=1, copied=2, reused=5, removed=2, skipped=0)
    assert encoder.embedded == 1
    table = open_table(gallery)
    assert "blue.png" not in table.paths and "below/yellow.png" not in table.paths
    assert table.ids[table.paths.index("white.png")] == kept_id
    assert len(set(table.ids.tolist())) == 8 and (np.diff(table.ids) > 0).all()
    colours = dict(zip(table.paths, table.vectors.argmax(axis=1).tolist(), strict=True))
    assert colours["red.png"] == list(PALETTE).index("blue")
    assert colours["moved.png"] == list(PALETTE).index("yellow")


def test_a_removed_image_may_come_back(gallery: Path, encoder: FakeEncoder) -> None:
    build(gallery, encoder)
    (gallery / "red.png").rename(gallery / "red.hidden")
    assert build(gallery, LazyEncoder("tiny", refuse_to_load)) == BuildReport(0, 0, 7, 1, 0)
    (gallery / "red.hidden").rename(gallery / "red.png")
    assert build(gallery, encoder) == BuildReport(0, 1, 7, 0, 0)
    assert "red.png" in open_table(gallery).paths


def test_a_bad_image_is_skipped_once_and_tried_again_when_it_changes(
    gallery: Path, encoder: FakeEncoder
) -> None:
    bad = gallery / "bad.png"
    bad.write_bytes(b"")
    witness = Witness()
    summary = build_index(gallery, gallery / ".fwd2bot", encoder, observer=witness)
    assert summary == BuildReport(8, 0, 0, 0, 1)
    assert witness.skipped == {"bad.png": "the file is empty"}
    assert witness.total == witness.done == 9
    assert build(gallery, LazyEncoder("tiny", refuse_to_load)) == BuildReport(0, 0, 8, 0, 1)
    paint(bad, "red", size=(30, 30))
    assert build(gallery, encoder) == BuildReport(1, 0, 8, 0, 0)


def test_a_larger_limit_lets_in_what_the_smaller_kept_out(gallery: Path, encoder: FakeEncoder) -> None:
    paint(gallery / "large.png", "red", size=(200, 200))
    assert build(gallery, encoder, max_megapixels=0.01) == BuildReport(8, 0, 0, 0, 1)
    assert build(gallery, encoder, max_megapixels=0.02) == BuildReport(0, 0, 8, 0, 1)
    assert build(gallery, encoder, max_megapixels=0.04) == BuildReport(1, 0, 8, 0, 0)


def test_a_strip_is_skipped_once(gallery: Path, encoder: FakeEncoder) -> None:
    Image.new("RGB", (1500, 1)).save(gallery / "strip.png")
    assert build(gallery, encoder) == BuildReport(8, 0, 0, 0, 1)
    witness = Witness()
    build_index(gallery, gallery / ".fwd2bot", encoder, observer=witness)
    assert witness.total == 0 and witness.skipped == {}


def test_an_index_of_bad_images_alone_is_empty_and_whole(tmp_path: Path, encoder: FakeEncoder) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert build(tmp_path, encoder) == BuildReport(0, 0, 0, 0, 1)
    assert len(open_table(tmp_path)) == 0


@pytest.mark.parametrize("part", ["vectors", "summaries"])
def test_a_model_that_gives_no_number_skips_the_image(gallery: Path, encoder: FakeEncoder, part: str) -> None:
    embed = encoder.encode_images

    def spoil(images: list) -> ImageEmbeddings:
        embeddings = embed(images)
        getattr(embeddings, part)[0] = np.nan
        return embeddings

    encoder.encode_images = spoil
    assert build(gallery, encoder) == BuildReport(indexed=5, copied=0, reused=0, removed=0, skipped=3)
    assert np.isfinite(open_table(gallery).vectors).all()


def test_a_model_that_gives_the_wrong_shape_is_refused(gallery: Path, encoder: FakeEncoder) -> None:
    encoder.dim = 9
    with pytest.raises(EncoderError, match=r"\(3, 8\) where \(3, 9\) is expected"):
        build(gallery, encoder)
    encoder.dim, encoder.summary_shape = 8, (5, 8)
    with pytest.raises(EncoderError, match=r"tokens of shape \(3, 4, 8\) where \(3, 5, 8\) is expected"):
        build(gallery, encoder)


def test_tokens_beyond_float16_are_stored_as_its_largest(gallery: Path, encoder: FakeEncoder) -> None:
    embed = encoder.encode_images

    def enlarge(images: list) -> ImageEmbeddings:
        vectors, summaries = embed(images)
        return ImageEmbeddings(vectors, 1e6 * (summaries - 0.5))

    encoder.encode_images = enlarge
    build(gallery, encoder, tokens="float16")
    table = open_table(gallery)
    tokens = table.read_summaries(table.ids)
    assert (tokens.max(), tokens.min()) == (65504, -65504)
    assert list(audit_index(gallery / ".fwd2bot")) == []


def test_a_dry_run_lists_what_is_new_and_writes_nothing(gallery: Path, encoder: FakeEncoder) -> None:
    plan = plan_build(gallery, gallery / ".fwd2bot")
    assert len(plan.fresh) == 8 and not (gallery / ".fwd2bot").exists()
    build(gallery, encoder)
    (gallery / "red.png").unlink()
    paint(gallery / "new.png", "red")
    plan = plan_build(gallery, gallery / ".fwd2bot")
    assert [file.path for file in plan.fresh] == ["new.png"]
    assert plan.removed == ["red.png"] and plan.reused == 7


def test_folders_without_images_are_refused_and_left_alone(tmp_path: Path, encoder: FakeEncoder) -> None:
    with pytest.raises(NothingToIndex, match="holds no image"):
        build(tmp_path, encoder)
    with pytest.raises(NothingToIndex, match="is not a folder"):
        build(tmp_path / "absent", encoder)
    assert list(tmp_path.iterdir()) == []


def test_what_hides_the_only_images_is_named(tmp_path: Path, encoder: FakeEncoder) -> None:
    (tmp_path / "photos.zip").write_bytes(b"no archive")
    witness = Witness()
    with pytest.raises(NothingToIndex, match="holds no image"):
        build_index(tmp_path, tmp_path / ".fwd2bot", encoder, observer=witness)
    assert list(witness.skipped) == ["photos.zip"] and "cannot be read" in witness.skipped["photos.zip"]


def test_an_index_is_left_as_it_is_when_all_images_are_gone(gallery: Path, encoder: FakeEncoder) -> None:
    build(gallery, encoder)
    for path in list(gallery.rglob("*.png")):
        path.unlink()
    with pytest.raises(NothingToIndex):
        build(gallery, encoder)
    assert len(open_table(gallery)) == 8


def test_another_model_is_refused_with_both_names_and_the_remedy(gallery: Path, encoder: FakeEncoder) -> None:
    build(gallery, encoder)
    other = FakeEncoder(name="other", fingerprint="fake-2")
    with pytest.raises(EncoderMismatch, match=r"tiny \(fake-1\).*other \(fake-2\).*--model tiny.*--rebuild"):
        build(gallery, other)
    paint(gallery / "new.png", "red")
    with pytest.raises(EncoderMismatch, match="fake-3"):
        build(gallery, FakeEncoder(fingerprint="fake-3"))
    assert build(gallery, other, rebuild=True) == BuildReport(8, 1, 0, 0, 0)
    assert read_manifest(gallery / ".fwd2bot").encoder.fingerprint == "fake-2"


def test_the_same_model_under_another_name_goes_on_and_is_known_by_it(
    gallery: Path, encoder: FakeEncoder
) -> None:
    build(gallery, encoder)
    index, before = gallery / ".fwd2bot", open_table(gallery).to_arrow()
    assert build(gallery, FakeEncoder(name="moved")) == BuildReport(0, 0, 8, 0, 0)
    assert read_manifest(index).encoder.name == "moved"
    assert open_table(gallery).to_arrow().equals(before) and list(audit_index(index)) == []
    paint(gallery / "new.png", "red", size=(9, 9))
    assert build(gallery, FakeEncoder(name="moved again")) == BuildReport(1, 0, 8, 0, 0)
    assert compact_index(index).parts == 1
    assert read_manifest(index).encoder.name == "moved again"
    assert len(open_table(gallery).to_arrow()) == 9 and list(audit_index(index)) == []


def test_a_part_of_another_model_is_damage_whatever_its_name(gallery: Path, encoder: FakeEncoder) -> None:
    build(gallery, encoder)
    index = gallery / ".fwd2bot"
    manifest = read_manifest(index)
    write_manifest(index, replace(manifest, encoder=replace(manifest.encoder, fingerprint="fake-2")))
    with pytest.raises(IndexDamaged, match="not those of the manifest"):
        open_table(gallery)


def test_another_format_of_tokens_is_refused(gallery: Path, encoder: FakeEncoder) -> None:
    build(gallery, encoder, tokens="float16")
    with pytest.raises(IndexFailure, match="keeps tokens as float16, not int8"):
        build(gallery, encoder, tokens="int8")
    assert build(gallery, encoder) == BuildReport(0, 0, 8, 0, 0)


def test_an_index_of_another_folder_is_refused(gallery: Path, tmp_path: Path, encoder: FakeEncoder) -> None:
    build_index(gallery, tmp_path / "index", encoder)
    with pytest.raises(IndexFailure, match="is the index of"):
        build_index(gallery / "below", tmp_path / "index", encoder)


def test_a_folder_may_move_with_its_index(gallery: Path, tmp_path: Path, encoder: FakeEncoder) -> None:
    build(gallery, encoder)
    gallery.rename(tmp_path / "moved")
    assert build(tmp_path / "moved", LazyEncoder("tiny", refuse_to_load)) == BuildReport(0, 0, 8, 0, 0)
    assert open_table(tmp_path / "moved").root == (tmp_path / "moved").resolve()


@pytest.mark.parametrize("tokens", ["int8", "float16"])
def test_summaries_come_back_as_the_encoder_gave_them(
    tmp_path: Path, encoder: FakeEncoder, tokens: str
) -> None:
    for number, quarters in enumerate(np.random.default_rng(0).integers(0, 256, (3, 2, 2, 3), np.uint8)):
        picture = Image.fromarray(quarters).resize((32, 32), Image.Resampling.NEAREST)
        picture.save(tmp_path / f"{number}.png")
    build(tmp_path, encoder, tokens=tokens)
    table, order = open_table(tmp_path), [2, 0, 2]
    stored = table.read_summaries(table.ids[order].tolist())
    pictures = [Image.open(tmp_path / path).convert("RGB") for path in table.paths]
    expected = encoder.encode_images(pictures).summaries
    assert expected is not None and np.ptp(expected.max(axis=-1)) > 0.1  # the tokens' scales differ
    assert stored.dtype == np.float32
    assert np.abs(stored - expected[order]).max() < 0.004  # half a level of int8


@pytest.mark.parametrize(("summaries", "tokens"), [(True, "none"), (False, None)])
def test_an_index_without_tokens_says_so(gallery: Path, summaries: bool, tokens: str | None) -> None:
    build(gallery, FakeEncoder(summaries=summaries), tokens=tokens)
    with pytest.raises(CannotAnswer, match="no summary tokens"):
        open_table(gallery).read_summaries([0])


def test_tokens_cannot_be_kept_where_the_model_has_none(gallery: Path) -> None:
    with pytest.raises(CannotAnswer, match="drop --tokens"):
        build(gallery, FakeEncoder(summaries=False), tokens="int8")
    assert not (gallery / ".fwd2bot").exists()


def test_a_model_that_does_not_load_leaves_no_folder_behind(gallery: Path) -> None:
    def fail() -> FakeEncoder:
        raise EncoderNotFound("'tyni' is not a model")

    with pytest.raises(EncoderNotFound):
        build(gallery, LazyEncoder("tyni", fail))
    assert not (gallery / ".fwd2bot").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens", "int4"),
        ("batch_size", 0),
        ("workers", 0),
        ("exclude", "trash"),
        ("max_megapixels", -1.0),
        ("max_megapixels", float("nan")),
    ],
)
def test_a_setting_that_no_run_can_follow_is_refused(name: str, value: object) -> None:
    with pytest.raises(IndexFailure, match=f"^{name} is {value!r}: give "):
        BuildSettings(**{name: value})
