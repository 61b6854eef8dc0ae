"""Families of rendered scenes: one scene, and others that differ from it by a single change.

In a batch, the pictures and captions of a family are hard negatives of each other, so that colours alone no
longer tell which caption belongs to which scene.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from benchmarks.scenes import (
    SHAPES,
    TEXTURES,
    Scene,
    Thing,
    describe_fully,
    is_true,
    make_scene,
    rearrange_scene,
)

Things = tuple[Thing, ...]
_TRIES = 12  # a change may not fit into the scene, or may make no difference


def make_family(seed: int, index: int, size: int, most_things: int = 3) -> list[Scene]:
    """Family `index` of the series `seed`: `size` scenes.

    A changed scene is only kept if its full description is false of every member so far, and theirs of it. If
    no such change is found, an independent scene takes its place, without this check.
    """
    random = Random(f"family {index} of series {seed}")
    family = [make_scene(seed, index, most_things)]
    while len(family) < size:
        family.append(_vary(family, random) or make_scene(seed, index + len(family), most_things))
    return family


def _vary(family: list[Scene], random: Random) -> Scene | None:
    for _ in range(_TRIES):
        things = random.choice(_CHANGES)(family[0].things, random)
        changed = rearrange_scene(family[0], things)
        if changed is not None and not any(_may_be_confused(changed, other) for other in family):
            return changed
    return None


def _may_be_confused(one: Scene, other: Scene) -> bool:
    return is_true(one, describe_fully(other)) or is_true(other, describe_fully(one))


def _change_shape(things: Things, random: Random) -> Things:
    free = [shape for shape in SHAPES if all(shape != thing.shape for thing in things)]
    position = random.randrange(len(things))
    return _put(things, position, replace(things[position], shape=random.choice(free)))


def _change_texture(things: Things, random: Random) -> Things:
    position = random.randrange(len(things))
    return _put(things, position, replace(things[position], texture=random.choice(TEXTURES)))


def _change_size(things: Things, random: Random) -> Things:
    position = random.randrange(len(things))
    thing = things[position]
    size, factor = ("large", 1.8) if thing.size == "small" else ("small", 1 / 1.8)
    return _put(things, position, replace(thing, size=size, radius=thing.radius * factor))


def _exchange_places(things: Things, random: Random) -> Things:
    return _exchange(things, random, "x", "y")


def _exchange_colours(things: Things, random: Random) -> Things:
    return _exchange(things, random, "colour", "rgb")


def _exchange_textures(things: Things, random: Random) -> Things:
    return _exchange(things, random, "texture")


_CHANGES: tuple[Callable[[Things, Random], Things], ...] = (
    _change_shape,
    _change_texture,
    _change_size,
    _exchange_places,
    _exchange_colours,
    _exchange_textures,
)


def _exchange(things: Things, random: Random, *names: str) -> Things:
    """Swap some properties of two things; a single thing is left unchanged."""
    if len(things) == 1:
        return things
    first, second = random.sample(range(len(things)), 2)
    traded = [{name: getattr(things[position], name) for name in names} for position in (second, first)]
    changed = _put(things, first, replace(things[first], **traded[0]))
    return _put(changed, second, replace(things[second], **traded[1]))


def _put(things: Things, position: int, thing: Thing) -> Things:
    return (*things[:position], thing, *things[position + 1 :])
