"""Families of scenes: members differ in their descriptions, and every member is a valid scene."""

import pytest

from benchmarks.scene_world import Scene, see_relation
from benchmarks.scenes import describe_fully, is_true
from training.families import make_family


def families() -> list[list[Scene]]:
    return [make_family(5, 10 * index, 4) for index in range(60)]


def test_a_full_description_is_true_of_one_member_alone() -> None:
    for family in families():
        for scene in family:
            assert [other for other in family if is_true(other, describe_fully(scene))] == [scene]


def test_most_members_keep_the_background_and_the_number_of_things() -> None:
    kept = [
        (scene.background, len(scene.things)) == (family[0].background, len(family[0].things))
        for family in families()
        for scene in family[1:]
    ]
    assert sum(kept) / len(kept) > 0.9


def test_members_obey_the_laws_of_scenes() -> None:
    for scene in (scene for family in families() for scene in family):
        shapes = [thing.shape for thing in scene.things]
        assert len(set(shapes)) == len(shapes)
        assert all(thing.x - thing.radius >= 0 and thing.x + thing.radius <= 1 for thing in scene.things)
        for subject, kind, other in scene.relations:
            assert see_relation(scene.things[subject], scene.things[other]) == kind


@pytest.mark.parametrize("size", [1, 2, 6])
def test_a_family_is_the_same_each_time_and_of_the_size_asked_for(size: int) -> None:
    family = make_family(5, 3, size)
    assert len(family) == size
    assert family == make_family(5, 3, size)


@pytest.mark.parametrize("most_things", [1, 2])
def test_a_family_holds_no_more_things_than_asked_for(most_things: int) -> None:
    counts = {
        len(scene.things) for index in range(20) for scene in make_family(5, 10 * index, 4, most_things)
    }
    assert counts == set(range(1, most_things + 1))
