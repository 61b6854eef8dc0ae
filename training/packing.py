"""Texts of a step to padded parts. Ids say what belongs together, so texts may come in any order."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import BatchEncoding

from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import Answers
from training.losses import HARD_NEGATIVE
from training.sources.base import Sample

PART_ROWS = 64
_Text = TypeVar("_Text")


class Row(NamedTuple):
    """One source of a step: its id, what is said of it, and which of the two losses learns from that."""

    id: int
    sample: Sample
    contrastive: bool
    answer: bool


class Targets(NamedTuple):
    """Texts to be matched, and those to be told from them: as pass 1 reads them, and as they stand.

    ids: int64 (texts,), of the source that each belongs to.
    """

    parts: list[BatchEncoding]
    ids: Tensor
    texts: list[str]


def pack_targets(builder: InputBuilder, rows: Sequence[Row]) -> Targets:
    """The targets of the rows that have one, and their hard negatives."""
    paired = [row for row in rows if row.contrastive]
    targets = [(row.sample.target, row.id) for row in paired]
    targets += [(negative, HARD_NEGATIVE) for row in paired for negative in row.sample.negatives]
    parts = _pack_by_length(targets, lambda target: len(target[0]))
    ids = torch.tensor([known for part in parts for _, known in part], dtype=torch.long)
    texts = [[text for text, _ in part] for part in parts]
    return Targets([builder.texts(part) for part in texts], ids, [text for part in texts for text in part])


def pack_answers(builder: InputBuilder, rows: Sequence[Row]) -> list[Answers]:
    """What pass 2 is to say; all turns of a row point at the one source."""
    turns = [
        (index, turn.question or builder.prompts.caption, turn.answer)
        for index, row in enumerate(rows)
        if row.answer
        for turn in row.sample.turns
    ]
    answers = []
    for part in _pack_by_length(turns, lambda turn: len(turn[1] + turn[2])):
        inputs, labels = builder.answers(
            [question for _, question, _ in part], [answer for *_, answer in part]
        )
        answers.append(Answers(torch.tensor([index for index, *_ in part]), inputs, labels))
    return answers


def mark_words(builder: InputBuilder, texts: Sequence[str]) -> Tensor:
    """Which tokens of the vocabulary each text holds: bool (texts, vocabulary)."""
    words = torch.zeros(len(texts), len(builder.tokenizer), dtype=torch.bool)
    for row, text in enumerate(texts):
        words[row, builder.tokenizer(text, add_special_tokens=False)["input_ids"]] = True
    return words


def _pack_by_length(texts: list[_Text], length: Callable[[_Text], int]) -> list[list[_Text]]:
    """Texts in order of length, in parts of about `PART_ROWS`: padding to the longest costs little."""
    ordered = sorted(texts, key=length)
    return [ordered[start : start + PART_ROWS] for start in range(0, len(ordered), PART_ROWS)]
