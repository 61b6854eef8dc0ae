"""Questions about a scene that have exactly one answer, with that answer."""

from collections.abc import Iterator
from random import Random

from benchmarks.scene_captions import COUNT_WORDS, RELATION_PHRASES, add_article
from benchmarks.scene_world import COLOURS, OPPOSITES, SHAPES, Scene, Thing, holds

Question = tuple[str, str]


def questions(scene: Scene) -> list[Question]:
    """Every question about this scene, with its answer; half of the yes/no answers are "no"."""
    asked = [("How many objects are there?", COUNT_WORDS[len(scene.things)])]
    if scene.background.kind == "plain":
        asked += [(f"What {word} is the background?", scene.background.name) for word in _COLOUR_WORDS]
    for thing in scene.things:
        asked += _ask_about(thing)
    asked += [*_ask_for_shapes(scene), *_ask_for_places(scene), *_ask_whether(scene)]
    return asked


# Users type either spelling.
_COLOUR_WORDS = ("colour", "color")


def _ask_about(thing: Thing) -> list[Question]:
    return [
        *((f"What {word} is the {thing.shape}?", thing.colour) for word in _COLOUR_WORDS),
        (f"What size is the {thing.shape}?", thing.size),
        (f"Is the {thing.shape} small or large?", thing.size),
        (f"What pattern does the {thing.shape} have?", thing.texture),
    ]


def _ask_for_shapes(scene: Scene) -> Iterator[Question]:
    for name in ("colour", "size", "texture"):
        values = [getattr(thing, name) for thing in scene.things]
        for thing, value in zip(scene.things, values, strict=True):
            if values.count(value) == 1:
                yield f"What shape is the {value} object?", thing.shape


def _ask_for_places(scene: Scene) -> Iterator[Question]:
    related = [
        *scene.relations,
        *(
            relation._replace(subject=relation.other, other=relation.subject, kind=OPPOSITES[relation.kind])
            for relation in scene.relations
        ),
    ]
    for relation in related:
        thing, other = scene.things[relation.subject], scene.things[relation.other]
        there = [each for each in scene.things if each is not other and holds(each, relation.kind, other)]
        if there == [thing]:
            answer = add_article(f"{thing.colour} {thing.shape}")
            for phrase in RELATION_PHRASES[relation.kind]:
                yield f"What is {phrase} the {other.shape}?", answer


def _ask_whether(scene: Scene) -> Iterator[Question]:
    # The wrong values are drawn with the scene's own seed, so that a scene always has the same questions.
    random = Random(scene.background.seed)
    present = [thing.shape for thing in scene.things]
    yield f"Is there {add_article(random.choice(present))}?", "yes"
    yield f"Is there {add_article(random.choice([each for each in SHAPES if each not in present]))}?", "no"
    for thing in scene.things:
        wrong = random.choice([colour for colour in COLOURS if colour != thing.colour])
        yield f"Is the {thing.shape} {thing.colour}?", "yes"
        yield f"Is the {thing.shape} {wrong}?", "no"
    for relation in scene.relations:
        one, other = scene.things[relation.subject].shape, scene.things[relation.other].shape
        yield f"Is the {one} {RELATION_PHRASES[relation.kind][0]} the {other}?", "yes"
        yield f"Is the {one} {RELATION_PHRASES[OPPOSITES[relation.kind]][0]} the {other}?", "no"
