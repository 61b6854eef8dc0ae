"""Turn descriptions of scenes into plain English: captions and hard negatives."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import NamedTuple, TypeVar

from benchmarks.scene_world import (
    COLOURS,
    OPPOSITES,
    SHAPES,
    SIZES,
    TEXTURES,
    Description,
    Mention,
    Relation,
    Scene,
    describe_fully,
    is_true,
)

Choice = TypeVar("Choice")

COUNT_WORDS = {1: "one", 2: "two", 3: "three"}
# The first phrase of each row is used in captions with fixed wording.
RELATION_PHRASES = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_OPENINGS = ("", "", "", "there is ", "a picture of ", "an image with ")
_KEPT = {"colour": 0.85, "size": 0.4, "texture": 0.5}
_PHRASINGS = 5


class HardNegative(NamedTuple):
    """A caption made false of its scene by one change to `unique_caption`; `kind` names the change."""

    kind: str
    caption: str


class Phrasing(NamedTuple):
    """A caption and the description it renders."""

    caption: str
    description: Description


def unique_caption(scene: Scene) -> str:
    """The caption that says everything about a scene, in one fixed wording."""
    return render_description(describe_fully(scene))


def describe_scene(scene: Scene, random: Random) -> list[str]:
    """Five true captions, `unique_caption` first, then others in varying wording and detail."""
    return [phrasing.caption for phrasing in phrase_scene(scene, random)]


def phrase_scene(scene: Scene, random: Random) -> list[Phrasing]:
    """The captions of `describe_scene`, with the descriptions they were made from."""
    full = describe_fully(scene)
    named = replace(full, mentions=tuple(Mention(m.shape, m.colour) for m in full.mentions), background=None)
    listed = replace(named, relations=(), count=len(full.mentions))
    descriptions = [named, listed if random.random() < 0.5 else named]
    while len(descriptions) < _PHRASINGS - 1:
        descriptions.append(_leave_out(full, random))
    retold = [_retell(description, random) for description in descriptions]
    said = [Phrasing(render_description(description, random), description) for description in retold]
    return [Phrasing(unique_caption(scene), full), *said]


def retell_scene(scene: Scene, random: Random) -> str:
    """Everything that `unique_caption` says, in varying wording."""
    return render_description(_retell(describe_fully(scene), random), random)


def hard_negatives(scene: Scene, random: Random) -> list[HardNegative]:
    """At most one false caption of each kind, each one change away from `unique_caption`."""
    return [HardNegative(kind, render_description(false)) for kind, false in falsify_scene(scene, random)]


def falsify_scene(scene: Scene, random: Random) -> list[tuple[str, Description]]:
    """The descriptions behind `hard_negatives`: (kind, description), none of them true of the scene."""
    full = describe_fully(scene)
    candidates: dict[str, list[Description]] = {
        "attributes swapped": list(_swap_attributes(full)),
        "relation reversed": list(_reverse_relations(full)),
        "colour replaced": list(_replace_attribute(full, "colour", tuple(COLOURS))),
        "shape replaced": list(_replace_attribute(full, "shape", SHAPES)),
        "size replaced": list(_replace_attribute(full, "size", SIZES)),
        "texture replaced": list(_replace_attribute(full, "texture", TEXTURES)),
    }
    false_ones = []
    for kind, changed in candidates.items():
        false = [description for description in changed if not is_true(scene, description)]
        if false:
            false_ones.append((kind, random.choice(false)))
    return false_ones


def render_description(description: Description, random: Random | None = None) -> str:
    """Put a description into words: in one fixed wording, or in one that varies with `random`."""
    mentions = [_render_mention(mention, random) for mention in description.mentions]
    text = _render_relations(description, mentions, random)
    if description.count is not None and description.count > 1:
        text = f"{COUNT_WORDS[description.count]} {_choose(('objects', 'shapes'), random)}: {text}"
    elif random is not None:
        text = random.choice(_OPENINGS) + text
    if description.background is not None:
        place = _choose(("on", "against", "in front of"), random)
        text += f" {place} {add_article(description.background)} background"
    return text


def add_article(words: str) -> str:
    """Prefix words with "a" or "an"."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _choose(options: Sequence[Choice], random: Random | None) -> Choice:
    return options[0] if random is None else random.choice(options)


def _render_mention(mention: Mention, random: Random | None) -> str:
    texture, colour = mention.texture, mention.colour
    # "a plain red circle" is English, "a red plain circle" is not.
    adjectives = (
        [texture, colour] if texture == "plain" else _choose(([colour, texture], [texture, colour]), random)
    )
    noun = mention.shape or _choose(("object", "shape"), random)
    return add_article(" ".join(word for word in (mention.size, *adjectives, noun) if word))


def _render_relations(description: Description, mentions: list[str], random: Random | None) -> str:
    if not description.relations:
        return _join(mentions)
    first, *others = description.relations
    text = f"{mentions[first.subject]} {_say(first, random)} {mentions[first.other]}"
    for relation in others:
        known = description.mentions[relation.other]
        text += f", and {mentions[relation.subject]} {_say(relation, random)} the {known.shape}"
    return text


def _say(relation: Relation, random: Random | None) -> str:
    return _choose(RELATION_PHRASES[relation.kind], random)


def _join(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _leave_out(full: Description, random: Random) -> Description:
    """A description that says less: without some attributes, the background, or the last thing."""
    mentions = [
        Mention(
            mention.shape,
            *(getattr(mention, name) if random.random() < share else None for name, share in _KEPT.items()),
        )
        for mention in full.mentions
    ]
    relations = full.relations
    if len(mentions) == 3 and random.random() < 0.5:
        mentions, relations = mentions[:2], relations[:1]
    background = full.background if random.random() < 0.3 else None
    return Description(tuple(mentions), relations, background=background)


def _retell(description: Description, random: Random) -> Description:
    """Turn the first relation around half of the time ("a below b" for "b above a"); shuffle plain lists."""
    if not description.relations:
        mentions = random.sample(description.mentions, len(description.mentions))
        return replace(description, mentions=tuple(mentions))
    if random.random() < 0.5:
        return description
    first, *others = description.relations
    turned = Relation(first.other, OPPOSITES[first.kind], first.subject)
    return replace(description, relations=(turned, *others))


def _swap_attributes(full: Description) -> Iterator[Description]:
    pairs = [(a, b) for b in range(len(full.mentions)) for a in range(b)]
    for a, b in pairs:
        for name in ("colour", "size", "texture"):
            one, other = full.mentions[a], full.mentions[b]
            if getattr(one, name) != getattr(other, name):
                changed = list(full.mentions)
                changed[a] = replace(one, **{name: getattr(other, name)})
                changed[b] = replace(other, **{name: getattr(one, name)})
                yield replace(full, mentions=tuple(changed))


def _reverse_relations(full: Description) -> Iterator[Description]:
    for position, relation in enumerate(full.relations):
        changed = list(full.relations)
        changed[position] = relation._replace(kind=OPPOSITES[relation.kind])
        yield replace(full, relations=tuple(changed))


def _replace_attribute(full: Description, name: str, values: Sequence[str]) -> Iterator[Description]:
    taken = {mention.shape for mention in full.mentions}
    for position, mention in enumerate(full.mentions):
        for value in values:
            # If a shape occurred twice, "the star" would be ambiguous.
            if value != getattr(mention, name) and not (name == "shape" and value in taken):
                changed = list(full.mentions)
                changed[position] = replace(mention, **{name: value})
                yield replace(full, mentions=tuple(changed))
