"""Rendered scenes: captions are true, negatives are false, and pictures show what captions say."""

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import read_karpathy
from benchmarks.scene_captions import render_description
from benchmarks.scene_world import COLOURS, SHAPES, SIZES, TEXTURES
from benchmarks.scenes import (
    Background,
    Description,
    Mention,
    Relation,
    Scene,
    Thing,
    describe_fully,
    describe_scene,
    draw_scene,
    falsify_scene,
    find_uniquely_named,
    hard_negatives,
    is_true,
    main,
    make_scene,
    phrase_scene,
    questions,
    unique_caption,
)

MANY = range(300)


def place(shape: str, colour: str, x: float, y: float, size: str = "small", texture: str = "plain") -> Thing:
    return Thing(shape, colour, size, texture, x, y, 0.1 if size == "small" else 0.2, COLOURS[colour])


WHITE = Background("plain", "white", (255, 255, 255), (255, 255, 255), True, 0)
RED_LEFT_OF_BLUE = Scene(
    (place("circle", "red", 0.25, 0.5), place("square", "blue", 0.75, 0.55, "large")),
    (Relation(0, "left of", 1),),
    WHITE,
)


def test_a_scene_depends_on_series_and_number_alone() -> None:
    backwards = [make_scene(4, index) for index in (9, 3, 0)]
    assert backwards[::-1] == [make_scene(4, index) for index in (0, 3, 9)]
    assert make_scene(4, 3) != make_scene(5, 3) != make_scene(4, 4)
    assert draw_scene(make_scene(4, 3)).tobytes() == draw_scene(make_scene(4, 3)).tobytes()


def test_every_attribute_and_every_number_of_things_occurs() -> None:
    scenes = [make_scene(0, index) for index in MANY]
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.size for thing in things} == set(SIZES)
    assert {thing.texture for thing in things} == set(TEXTURES)
    assert {len(scene.things) for scene in scenes} == {1, 2, 3}
    assert {relation.kind for scene in scenes for relation in scene.relations} == {
        "left of",
        "right of",
        "above",
        "below",
    }


def test_things_keep_apart_lie_within_and_are_large_enough_to_be_read() -> None:
    for scene in (make_scene(1, index) for index in MANY):
        for thing in scene.things:
            assert thing.radius <= min(thing.x, thing.y, 1 - thing.x, 1 - thing.y)
            assert 2 * thing.radius * 112 >= (18 if thing.size == "small" else 36)
        for one in scene.things:
            for other in scene.things:
                apart = max(abs(one.x - other.x), abs(one.y - other.y))
                assert one is other or apart > one.radius + other.radius


@pytest.mark.parametrize(
    ("description", "truth"),
    [
        (Description((Mention("circle", "red"),)), True),
        (Description((Mention("circle", "blue"),)), False),
        (Description((Mention(colour="blue", size="large"),)), True),
        (Description((Mention("square", texture="striped"),)), False),
        (Description((Mention("circle"), Mention("circle"))), False),
        (Description((Mention("circle"), Mention("square")), (Relation(0, "left of", 1),)), True),
        (Description((Mention("circle"), Mention("square")), (Relation(1, "right of", 0),)), True),
        (Description((Mention("circle"), Mention("square")), (Relation(0, "right of", 1),)), False),
        (Description((Mention("square"), Mention("circle")), (Relation(0, "left of", 1),)), False),
        (Description((Mention("circle"), Mention("square")), (Relation(0, "above", 1),)), True),
        (Description((Mention("circle"), Mention("square")), (Relation(0, "below", 1),)), False),
        (Description((Mention("circle"),), count=2), True),
        (Description((Mention("circle"),), count=1), False),
        (Description((Mention("circle"),), background="white"), True),
        (Description((Mention("circle"),), background="grainy"), False),
    ],
)
def test_truth_is_what_the_words_say(description: Description, truth: bool) -> None:
    assert is_true(RED_LEFT_OF_BLUE, description) is truth


def test_every_caption_is_true_and_says_what_its_description_says() -> None:
    for index in MANY:
        scene = make_scene(2, index)
        phrasings = phrase_scene(scene, Random(index))
        assert [phrasing.caption for phrasing in phrasings] == describe_scene(scene, Random(index))
        assert phrasings[0] == (unique_caption(scene), describe_fully(scene))
        for caption, description in phrasings:
            assert is_true(scene, description), caption
            for mention in description.mentions:
                said = {mention.shape, mention.colour, mention.size, mention.texture} - {None}
                assert said <= set(caption.replace(",", "").split()), caption


def test_captions_are_plain_lower_case_english() -> None:
    captions = [caption for index in MANY for caption in describe_scene(make_scene(2, index), Random(index))]
    assert all(caption == caption.lower() and "  " not in caption for caption in captions)
    assert not [caption for caption in captions if " a o" in f" {caption}" or " an r" in f" {caption}"]
    assert np.mean([len(caption.split()) < 20 for caption in captions]) > 0.8
    assert len({caption.split()[0] for caption in captions}) > 3


def test_captions_read_as_a_person_would_write_them() -> None:
    assert unique_caption(RED_LEFT_OF_BLUE) == (
        "a small plain red circle to the left of a large plain blue square on a white background"
    )
    listed = Description((Mention("star", "orange"), Mention("ring"), Mention("heart")), count=3)
    assert render_description(listed) == "three objects: an orange star, a ring and a heart"


def test_every_negative_is_false_and_is_one_change_away() -> None:
    kinds = set()
    for index in MANY:
        scene = make_scene(3, index)
        for kind, description in falsify_scene(scene, Random(index)):
            assert not is_true(scene, description)
            assert _count_changes(describe_fully(scene), description) == (2 if "swapped" in kind else 1)
            kinds.add(kind)
        captions = [negative.caption for negative in hard_negatives(scene, Random(index))]
        assert unique_caption(scene) not in captions
    assert kinds >= {"attributes swapped", "relation reversed", "colour replaced", "shape replaced"}


def _count_changes(one: Description, other: Description) -> int:
    pairs = zip(one.mentions, other.mentions, strict=True)
    words = sum(vars(a)[name] != vars(b)[name] for a, b in pairs for name in vars(a))
    return words + sum(a != b for a, b in zip(one.relations, other.relations, strict=True))


def test_a_caption_names_its_scene_uniquely_where_it_is_false_of_all_others() -> None:
    twin = Scene(RED_LEFT_OF_BLUE.things, RED_LEFT_OF_BLUE.relations, WHITE)
    alone = Scene((place("circle", "red", 0.5, 0.5),), (), WHITE)
    other = Scene((place("star", "red", 0.5, 0.5),), (), WHITE)
    gallery = [RED_LEFT_OF_BLUE, twin, alone, other]
    # The lone circle's caption is true of the first two scenes as well; only the last scene has a star.
    assert find_uniquely_named(gallery, [describe_fully(scene) for scene in gallery]) == [3]


def test_the_centre_of_a_plain_thing_shows_its_colour_where_it_is_said_to_be() -> None:
    pixels = np.asarray(draw_scene(RED_LEFT_OF_BLUE, 200)).astype(int)
    assert np.abs(pixels[100, 50] - COLOURS["red"]).max() <= 2
    assert np.abs(pixels[110, 150] - COLOURS["blue"]).max() <= 2
    assert (pixels[5, 5] == 255).all()


def test_shapes_and_textures_look_different_from_each_other() -> None:
    things = [place(shape, "blue", 0.5, 0.5, "large", texture) for shape in SHAPES for texture in TEXTURES]
    pictures = [np.asarray(draw_scene(Scene((thing,), (), WHITE), 112)).astype(int) for thing in things]
    differing = [np.abs(a - b).max(-1) > 60 for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(int(pixels.sum()) for pixels in differing) > 60


def test_questions_have_one_answer_each_and_it_is_the_right_one() -> None:
    answers = dict(questions(RED_LEFT_OF_BLUE))
    assert answers["What colour is the circle?"] == answers["What color is the circle?"] == "red"
    assert answers["How many objects are there?"] == "two"
    assert answers["What is to the left of the square?"] == "a red circle"
    assert answers["What shape is the large object?"] == "square"
    assert "What shape is the plain object?" not in answers
    assert answers["Is the circle to the right of the square?"] == "no"
    for index in MANY:
        asked = questions(make_scene(6, index))
        assert len(dict(asked)) == len(asked)
        given = [answer for _, answer in asked]
        assert given.count("yes") == given.count("no")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_command_writes_pictures_and_both_annotation_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    out = tmp_path / "made"
    assert main(["--out", str(out), "--count", "7", "--seed", "3", "--size", "64", "--format", suffix]) == 0
    assert "7 scenes" in capsys.readouterr().out
    images = read_karpathy(out / "dataset_scenes.json", out, ["test"])
    lines = [json.loads(line) for line in (out / "scenes.jsonl").read_text().splitlines()]
    assert [image.path.name for image in images] == [line["image"] for line in lines]
    assert [list(image.captions) for image in images] == [line["captions"] for line in lines]
    for index, (image, line) in enumerate(zip(images, lines, strict=True)):
        scene = make_scene(3, index)
        assert line["captions"][0] == unique_caption(scene)
        assert line["questions"][0]["question"] == "How many objects are there?"
        assert scene.things[0].shape in image.path.name
        with Image.open(image.path) as picture:
            assert (picture.size, picture.mode) == ((64, 64), "RGB")
