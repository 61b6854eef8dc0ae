"""Compositionality sets: their published formats, their scoring rules, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.compositions import load_picture, read_compositions
from benchmarks.judging import (
    Judgement,
    Scores,
    find_threshold,
    judge_choices,
    judge_groups,
    judge_statements,
    judge_triplets,
    report_accuracy,
)
from benchmarks.readers.aro import parse_aro
from benchmarks.readers.composition import Composition, Picture
from benchmarks.readers.sugarcrepe import FILES, FILES_PP, parse_sugarcrepe, parse_sugarcrepe_pp
from benchmarks.readers.vsr import parse_vsr
from benchmarks.readers.winoground import parse_winoground
from encoders.base import DatasetError
from tests.conftest import paint

PHOTO = Picture(Path("a.jpg"))


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def write_lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def make_sugarcrepe(name: str = "a.jpg", **more: str) -> dict[str, str]:
    return {"filename": name, "caption": "A dog. ", "negative_caption": "A cat."} | more


def test_sugarcrepe_is_read_from_its_seven_files_or_one(tmp_path: Path) -> None:
    for name in FILES:
        write(tmp_path / name, {"0": make_sugarcrepe(), "1": make_sugarcrepe("b.jpg")})
    compositions = parse_sugarcrepe(tmp_path, tmp_path / "val2017")
    assert len(compositions) == 14
    assert [each.kind for each in compositions[::2]] == [name.removesuffix(".json") for name in FILES]
    picture = Picture(tmp_path / "val2017" / "b.jpg")
    assert compositions[1] == Composition((picture,), ("A dog.", "A cat."), 1, "add_att")
    assert parse_sugarcrepe(tmp_path / "swap_obj.json", tmp_path / "val2017") == compositions[-2:]
    (tmp_path / "add_obj.json").unlink()
    with pytest.raises(DatasetError, match=r"6 of the 7 published files and not add_obj\.json"):
        parse_sugarcrepe(tmp_path, tmp_path)


def test_sugarcrepe_pp_has_two_true_captions(tmp_path: Path) -> None:
    assert len(FILES_PP) == 5
    path = write(tmp_path / "swap_att.json", [{"id": 0} | make_sugarcrepe(caption2="The dog.")])
    (composition,) = parse_sugarcrepe_pp(path, tmp_path)
    assert composition.captions == ("A dog.", "The dog.", "A cat.")
    assert (composition.true, composition.kind) == (2, "swap_att")


def test_winoground_names_its_pictures_without_their_suffix(tmp_path: Path) -> None:
    record = {"id": 0, "image_0": "ex_0_img_0", "image_1": "ex_0_img_1", "collapsed_tag": "Object"}
    path = write_lines(tmp_path / "examples.jsonl", record | {"caption_0": "A b.", "caption_1": "B a."})
    (composition,) = parse_winoground(path, tmp_path)
    assert composition.pictures == tuple(Picture(tmp_path / f"ex_0_img_{number}.png") for number in (0, 1))
    assert (composition.captions, composition.kind) == (("A b.", "B a."), "Object")


BOX = {"bbox_x": 3, "bbox_y": 5, "bbox_w": 20, "bbox_h": 10}


def test_aro_cuts_a_box_out_and_may_have_many_false_captions(tmp_path: Path) -> None:
    pair = {"image_path": "1.jpg", "true_caption": "T.", "false_caption": "F."} | BOX
    write(tmp_path / "visual_genome_relation.json", [pair | {"relation_name": "on"}])
    write(tmp_path / "visual_genome_attribution.json", [pair])
    relation, attribution = parse_aro(tmp_path, tmp_path)
    assert relation == Composition((Picture(tmp_path / "1.jpg", (3, 5, 23, 15)),), ("T.", "F."), 1, "on")
    assert attribution.kind == "visual_genome_attribution"
    options = {"image": "val2014/2.jpg", "caption_options": ["T.", "F.", "G."]}
    (order,) = parse_aro(write(tmp_path / "coco_order.json", [options]), tmp_path)
    assert order == Composition(
        (Picture(tmp_path / "val2014" / "2.jpg"),), ("T.", "F.", "G."), 1, "coco_order"
    )


def test_aro_counts_attributes_by_their_pair_and_rare_pairs_for_the_whole_alone(tmp_path: Path) -> None:
    pair = {"image_path": "1.jpg", "true_caption": "T.", "false_caption": "F."}
    often, seldom = pair | {"attributes": ["red", "old", "wet"]}, pair | {"attributes": ["old", "red"]}
    path = write(tmp_path / "visual_genome_attribution.json", [often] * 25 + [seldom] * 24)
    kinds = [each.kind for each in parse_aro(path, tmp_path)]
    assert kinds == ["red_old"] * 25 + [""] * 24
    report = report_accuracy(kinds, Judgement(np.arange(49) < 20, 0.5))
    assert (report.count, report.accuracy, report.mean_of_kinds) == (49, 20 / 49, 0.8)
    assert report.counts == {"red_old": 25}


def test_a_shuffled_caption_that_came_out_as_the_true_one_is_no_false_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same, mixed = ({"image": "1.jpg", "caption_options": ["T.", *false]} for false in (["T."], ["F.", "T."]))
    (order,) = parse_aro(write(tmp_path / "coco_order.json", [same, mixed]), tmp_path)
    assert order.captions == ("T.", "F.")
    assert "coco_order.json: 1 of 2 left out" in capsys.readouterr().err
    with pytest.raises(DatasetError, match="no false caption that differs"):
        parse_aro(write(tmp_path / "coco_order.json", [same]), tmp_path)


def test_vsr_statements_are_true_or_false(tmp_path: Path) -> None:
    record = {"image": "1.jpg", "image_link": "", "caption": "A on b.", "label": 0, "relation": "on"}
    (composition,) = parse_vsr(write_lines(tmp_path / "test.jsonl", record), tmp_path)
    assert composition == Composition((Picture(tmp_path / "1.jpg"),), ("A on b.",), 0, "on")


Parser = Callable[[Path, Path], list[Composition]]


@pytest.mark.parametrize(
    ("parse", "record", "message"),
    [
        (parse_sugarcrepe, {}, "list of records"),
        (parse_sugarcrepe, [], "list of records"),
        (parse_sugarcrepe, [3], "list of records"),
        (parse_sugarcrepe, [{"filename": "a.jpg"}], 'record 0 of .* "caption" should be text and is absent'),
        (parse_sugarcrepe, [make_sugarcrepe("../a.jpg")], "not a plain path"),
        (parse_sugarcrepe_pp, [make_sugarcrepe()], '"caption2" should be text'),
        (parse_aro, [{"image_path": "a.jpg"}], '"true_caption" should be text'),
        (parse_aro, [{"image": "a.jpg", "caption": ["A.", "B."]}], "no false ones"),
        (parse_aro, [{"image": "a.jpg", "caption_options": ["A."]}], "and then false ones"),
        (
            parse_aro,
            [{"image": "a.jpg", "true_caption": "A.", "false_caption": "B.", "bbox_x": "1"}],
            "four numbers",
        ),
        (parse_winoground, {"image_0": "a"}, '"image_1" should be text'),
        (parse_winoground, 3, '"image_0" should be text'),
        (parse_vsr, {"image": "a.jpg", "caption": "A.", "relation": "on", "label": "yes"}, "label"),
    ],
)
def test_a_file_of_another_form_is_one_plain_error(
    tmp_path: Path, parse: Parser, record: Any, message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        parse(write(tmp_path / "file.json", record), tmp_path)


@pytest.mark.parametrize("parse", [parse_sugarcrepe, parse_aro, parse_winoground, parse_vsr])
def test_a_file_that_is_not_there_or_empty_is_one_plain_error(tmp_path: Path, parse: Parser) -> None:
    with pytest.raises(DatasetError, match="no annotation file"):
        parse(tmp_path / "none.json", tmp_path)
    (tmp_path / "empty.json").touch()
    with pytest.raises(DatasetError, match=r"empty\.json"):
        parse(tmp_path / "empty.json", tmp_path)


def test_compositions_without_their_photos_are_left_out_only_where_that_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "swap_att.json", [make_sugarcrepe(f"{n}.png") for n in (0, 1, 1)])
    paint(tmp_path / "1.png", "red")
    with pytest.raises(DatasetError, match=r"1 of 2 photos are not in .* \(0\.png\)"):
        read_compositions("sugarcrepe", path, tmp_path, allow_missing=False)
    kept, record = read_compositions("sugarcrepe", path, tmp_path, allow_missing=True)
    assert len(kept) == record.compositions == 2
    assert (record.pictures, record.missing) == (1, 1)


def test_a_box_is_cut_from_the_whole_picture_and_held_within_it(tmp_path: Path) -> None:
    image = Image.new("RGB", (200, 100), "white")
    image.paste((255, 0, 0), (60, 20, 100, 60))
    image.save(tmp_path / "a.png")
    part = load_picture(Picture(tmp_path / "a.png", (60, 20, 100, 60)), 8)
    assert part.size == (40, 40) and part.getcolors() == [(1600, (255, 0, 0))]
    assert load_picture(Picture(tmp_path / "a.png", (-5, 90, 10**9, 10**9)), 8).size == (200, 10)
    assert min(load_picture(Picture(tmp_path / "a.png"), 8).size) < 16
    with pytest.raises(DatasetError, match="none in the box"):
        load_picture(Picture(tmp_path / "a.png", (300, 0, 400, 50)), 8)
    (tmp_path / "a.png").write_bytes(b"none")
    with pytest.raises(DatasetError, match="cannot be decoded"):
        load_picture(Picture(tmp_path / "a.png"), 8)


def compose(captions: int, true: int, kind: str = "k") -> Composition:
    return Composition((PHOTO,), tuple("abcdef"[:captions]), true, kind)


def as_scores(*rows: list[float]) -> Scores:
    return Scores([np.array([row], np.float32) for row in rows], None)


def test_a_choice_is_right_where_all_true_captions_beat_all_false_ones_and_a_tie_is_wrong() -> None:
    pairs = judge_choices([compose(2, 1)] * 3, as_scores([2, 1], [1, 1], [1, 2]))["accuracy"]
    assert pairs.right.tolist() == [True, False, False]
    assert pairs.chance == 0.5
    fives = judge_choices([compose(5, 1)] * 2, as_scores([2, 1, 0, 1, 0], [2, 1, 3, 1, 0]))["accuracy"]
    assert fives.right.tolist() == [True, False]
    assert fives.chance == 0.2


def test_a_triplet_is_judged_by_the_image_and_by_the_texts_alone() -> None:
    texts = [np.array([[1, p, a], [p, 1, b], [a, b, 1]], np.float32) for p, a, b in ((3, 2, 1), (3, 2, 3))]
    scores = Scores(as_scores([3, 2, 1], [3, 1, 2]).matches, texts)
    judged = judge_triplets([compose(3, 2)] * 2, scores)
    assert judged["image-text (ITT)"].right.tolist() == [True, False]
    assert judged["text-only (TOT)"].right.tolist() == [True, False]
    assert {judgement.chance for judgement in judged.values()} == {1 / 3}
    assert list(judge_triplets([compose(3, 2)], as_scores([3, 2, 1]))) == ["image-text (ITT)"]


def test_winoground_is_scored_by_its_published_inequalities() -> None:
    tables = np.random.default_rng(0).integers(0, 4, (200, 2, 2)).astype(np.float32)
    compositions = [Composition((PHOTO, PHOTO), ("a", "b"), 1, "k")] * 200
    judged = judge_groups(compositions, Scores(list(tables), None))
    for row, table in enumerate(tables):
        c0_i0, c1_i0, c0_i1, c1_i1 = table.ravel()
        text = c0_i0 > c1_i0 and c1_i1 > c0_i1
        image = c0_i0 > c0_i1 and c1_i1 > c1_i0
        expected = {"text score": text, "image score": image, "group score": text and image}
        assert {measure: bool(judged[measure].right[row]) for measure in judged} == expected


def test_chance_is_what_scores_drawn_at_random_get() -> None:
    draws = np.random.default_rng(1).random((20_000, 2, 3)).astype(np.float32)
    groups = judge_groups([compose(2, 1)] * len(draws), Scores(list(draws[:, :, :2]), None))
    triplets = judge_triplets([compose(3, 2)] * len(draws), Scores(list(draws[:, :1]), None))
    for judgement in (*groups.values(), *triplets.values()):
        assert judgement.right.mean() == pytest.approx(judgement.chance, abs=0.012)


def test_the_threshold_is_the_best_there_is() -> None:
    random = np.random.default_rng(2)
    for _ in range(200):
        values = random.integers(0, 5, 9).astype(np.float32)
        labels = random.random(9) < 0.5
        found = find_threshold(values, labels)
        best = max(float(((values >= each) == labels).mean()) for each in [*values, np.inf])
        assert float(((values >= found) == labels).mean()) == best


def test_a_statement_is_judged_by_a_threshold_from_the_other_half() -> None:
    # A threshold of 8 fits the odd rows and one of 2 the even rows: each half is judged by the other's.
    values = [1.0, 7.0, 3.0, 9.0] * 3
    labels = [0, 0, 1, 1] * 3
    judged = judge_statements([compose(1, label) for label in labels], as_scores(*([v] for v in values)))
    assert judged["accuracy"].right.tolist() == [True, False, False, True] * 3
    assert judged["accuracy"].chance == 0.5


def test_accuracy_is_the_mean_over_compositions_and_over_those_of_a_kind() -> None:
    judgement = Judgement(np.array([True, False, True, False]), 0.5)
    report = report_accuracy(["a", "b", "a", "a"], judgement)
    assert report.accuracy == 0.5
    assert report.by_kind == {"a": pytest.approx(2 / 3), "b": 0.0}
    assert report.counts == {"a": 3, "b": 1}
    assert report.mean_of_kinds == pytest.approx(1 / 3)
    assert report.intervals["a"].low < 2 / 3 < report.intervals["a"].high
