"""What a rendered scene is, how one is generated from a seed, and what is true of it.

A scene holds one to three things of different shapes. A `Description` is a checkable statement about a scene;
texts are made from descriptions (`scene_captions`), so the truth of every caption is known exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from random import Random
from typing import NamedTuple

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond")
COLOURS: dict[str, RGB] = {
    "red": (214, 32, 38),
    "orange": (247, 134, 22),
    "yellow": (247, 222, 40),
    "green": (34, 150, 60),
    "blue": (34, 82, 206),
    "purple": (130, 44, 160),
    "pink": (246, 130, 184),
    "brown": (120, 72, 34),
    "black": (22, 22, 24),
    "white": (250, 250, 250),
}
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted", "checked")
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PLAIN_BACKGROUNDS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 130, 132),
    "beige": (226, 208, 172),
    "light blue": (172, 214, 240),
    "light green": (182, 226, 170),
}

# Half the side of a thing's box, as a fraction of the picture: 19 to 27 and 38 to 45 pixels across at 112.
_RADII = {"small": (0.085, 0.12), "large": (0.17, 0.2)}
_GAP = 0.025
# A centre this much further left makes "left of" true; captions only say so if it is plain to see.
_LEAST_OFFSET = 0.05
_PLAIN_TO_SEE = 1.5
_LEAST_CONTRAST = 100
_COLOUR_JITTER = 8


@dataclass(frozen=True)
class Thing:
    """One drawn object; x, y (centre) and radius are fractions of the picture's side."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    rgb: RGB


@dataclass(frozen=True)
class Background:
    """What is behind the things: `name` fits into "on a ... background", `seed` generates the grain."""

    kind: str
    name: str
    start: RGB
    end: RGB
    vertical: bool
    seed: int


class Relation(NamedTuple):
    """things[subject] is `kind` ("left of", "right of", "above", "below") things[other]."""

    subject: int
    kind: str
    other: int


@dataclass(frozen=True)
class Scene:
    """Things of different shapes, the relations between them that are plain to see, and the background."""

    things: tuple[Thing, ...]
    relations: tuple[Relation, ...]
    background: Background


@dataclass(frozen=True)
class Mention:
    """What a description says about one thing; None means unspecified."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    texture: str | None = None


@dataclass(frozen=True)
class Description:
    """A statement about a scene: the things in it, their relations, their number, and the background."""

    mentions: tuple[Mention, ...]
    relations: tuple[Relation, ...] = ()
    count: int | None = None
    background: str | None = None


def mention_fully(thing: Thing) -> Mention:
    """Everything that can be said about a thing."""
    return Mention(thing.shape, thing.colour, thing.size, thing.texture)


def describe_fully(scene: Scene) -> Description:
    """Everything that can be said about a scene, except the number of things."""
    mentions = tuple(mention_fully(thing) for thing in scene.things)
    return Description(mentions, scene.relations, background=scene.background.name)


def is_true(scene: Scene, description: Description) -> bool:
    """Whether the description is true of some things in the scene; further things do not make it false."""
    if description.background not in (None, scene.background.name):
        return False
    if description.count not in (None, len(scene.things)):
        return False
    choices = permutations(scene.things, len(description.mentions))
    return any(_fits(chosen, description) for chosen in choices)


def find_uniquely_named(scenes: Sequence[Scene], descriptions: Sequence[Description]) -> list[int]:
    """The positions i for which descriptions[i] is true of scenes[i] and of no other scene of the gallery."""
    return [
        position
        for position, description in enumerate(descriptions)
        if is_true(scenes[position], description)
        and not any(is_true(scene, description) for other, scene in enumerate(scenes) if other != position)
    ]


def holds(subject: Thing, kind: str, other: Thing) -> bool:
    """Whether the relation is true at all, even if nobody would say so (far above and a little left)."""
    right, down = subject.x - other.x, subject.y - other.y
    offset = {"left of": -right, "right of": right, "above": -down, "below": down}[kind]
    return offset >= _LEAST_OFFSET


def see_relation(subject: Thing, other: Thing) -> str | None:
    """The one relation that is plain to see: separated along one axis, and much less along the other."""
    right, down = subject.x - other.x, subject.y - other.y
    clear = subject.radius + other.radius
    if abs(right) >= max(clear, _PLAIN_TO_SEE * abs(down)):
        return "right of" if right > 0 else "left of"
    if abs(down) >= max(clear, _PLAIN_TO_SEE * abs(right)):
        return "below" if down > 0 else "above"
    return None


def make_scene(seed: int, index: int, most_things: int = 3) -> Scene:
    """Scene `index` of the series `seed`, whichever others are made; it holds up to `most_things` things."""
    random = Random(f"rendered scene {index} of series {seed}")
    background = _make_background(random)
    count = min(most_things, random.choices((1, 2, 3), weights=(25, 45, 30))[0])
    shapes = random.sample(SHAPES, count)
    while True:
        things = _place_things(random, shapes, background)
        relations = _relate_things(things)
        if relations is not None:
            return Scene(things, relations, background)


def rearrange_scene(scene: Scene, things: tuple[Thing, ...]) -> Scene | None:
    """The scene with other things and their relations.

    None if they collide or leave the picture, or if some thing has no relation that is plain to see.
    """
    fits = all(
        thing.radius + _GAP <= min(middle, 1 - middle) for thing in things for middle in (thing.x, thing.y)
    )
    apart = all(_are_apart(thing, other) for thing, other in combinations(things, 2))
    relations = _relate_things(things) if fits and apart else None
    return None if relations is None else Scene(things, relations, scene.background)


def _fits(chosen: tuple[Thing, ...], description: Description) -> bool:
    mentioned = zip(chosen, description.mentions, strict=True)
    return all(_matches(thing, mention) for thing, mention in mentioned) and all(
        holds(chosen[relation.subject], relation.kind, chosen[relation.other])
        for relation in description.relations
    )


def _matches(thing: Thing, mention: Mention) -> bool:
    return (
        mention.shape in (None, thing.shape)
        and mention.colour in (None, thing.colour)
        and mention.size in (None, thing.size)
        and mention.texture in (None, thing.texture)
    )


def _make_background(random: Random) -> Background:
    kind = random.choices(("plain", "gradient", "grainy"), weights=(50, 25, 25))[0]
    colour = random.choice(list(PLAIN_BACKGROUNDS))
    start = PLAIN_BACKGROUNDS[colour]
    end = random.choice(list(PLAIN_BACKGROUNDS.values())) if kind == "gradient" else start
    if kind == "gradient" and end == start:
        end = (255 - start[0] // 2, 180, 255 - start[2] // 2)
    name = colour if kind == "plain" else kind
    return Background(kind, name, start, end, random.random() < 0.5, random.getrandbits(32))


def _place_things(random: Random, shapes: list[str], background: Background) -> tuple[Thing, ...]:
    # If a thing finds no room, start over with new sizes: this is fast, and keeps three large things rare.
    placed: list[Thing] = []
    while len(placed) < len(shapes):
        size = random.choice(SIZES)
        for _ in range(20):
            thing = _make_thing(random, shapes[len(placed)], size, background)
            if all(_are_apart(thing, other) for other in placed):
                placed.append(thing)
                break
        else:
            placed = []
    return tuple(placed)


def _make_thing(random: Random, shape: str, size: str, background: Background) -> Thing:
    radius = random.uniform(*_RADII[size])
    reach = radius + _GAP
    x, y = random.uniform(reach, 1 - reach), random.uniform(reach, 1 - reach)
    colour = random.choice([name for name in COLOURS if _stands_out(COLOURS[name], background)])
    red, green, blue = (
        max(0, min(255, part + random.randint(-_COLOUR_JITTER, _COLOUR_JITTER))) for part in COLOURS[colour]
    )
    return Thing(shape, colour, size, random.choice(TEXTURES), x, y, radius, (red, green, blue))


def _stands_out(rgb: RGB, background: Background) -> bool:
    middle = tuple((a + b) / 2 for a, b in zip(background.start, background.end, strict=True))
    return all(
        sum((a - b) ** 2 for a, b in zip(rgb, behind, strict=True)) >= _LEAST_CONTRAST**2
        for behind in {background.start, background.end, middle}
    )


def _are_apart(one: Thing, other: Thing) -> bool:
    return max(abs(one.x - other.x), abs(one.y - other.y)) >= one.radius + other.radius + _GAP


def _relate_things(things: tuple[Thing, ...]) -> tuple[Relation, ...] | None:
    """Relations that connect all things (the second to the first, the third to either), or None."""
    relations = []
    for subject in range(1, len(things)):
        seen = [(see_relation(things[subject], things[other]), other) for other in range(subject)]
        plain = [Relation(subject, kind, other) for kind, other in seen if kind is not None]
        if not plain:
            return None
        relations.append(plain[0])
    if relations:
        first = relations[0]
        relations[0] = Relation(first.other, OPPOSITES[first.kind], first.subject)
    return tuple(relations)
