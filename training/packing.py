"""Pack the texts of a step into padded parts. Ids say what belongs together, so the order is free."""

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
    """One source of a step: its id, its texts, and which of the two losses learns from them."""

    id: int
    sample: Sample
    contrastive: bool
    answer: bool


class Targets(NamedTuple):
    """Matching texts and hard negatives, both tokenized for pass 1 (parts) and as plain strings (texts).

    ids: int64 (texts,), the source that each text belongs to, or HARD_NEGATIVE.
    """

    parts: list[BatchEncoding]
    ids: Tensor
    texts: list[str]


def pack_targets(builder: InputBuilder, rows: Sequence[Row]) -> Targets:
    """Pack the targets and hard negatives of the rows that take part in the contrastive loss."""
    paired = [row for row in rows if row.contrastive]
    targets = [(row.sample.target, row.id) for row in paired]
    targets += [(negative, HARD_NEGATIVE) for row in paired for negative in row.sample.negatives]
    parts = _pack_by_length(targets, lambda target: len(target[0]))
    ids = torch.tensor([known for part in parts for _, known in part], dtype=torch.long)
    texts = [[text for text, _ in part] for part in parts]
    return Targets([builder.texts(part) for part in texts], ids, [text for part in texts for text in part])


def pack_answers(builder: InputBuilder, rows: Sequence[Row]) -> list[Answers]:
    """Pack the answers that pass 2 learns; all turns of a row refer to the same source."""
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
    """Which tokens of the vocabulary each text contains: bool (texts, vocabulary)."""
    words = torch.zeros(len(texts), len(builder.tokenizer), dtype=torch.bool)
    for row, text in enumerate(texts):
        words[row, builder.tokenizer(text, add_special_tokens=False)["input_ids"]] = True
    return words


def _pack_by_length(texts: list[_Text], length: Callable[[_Text], int]) -> list[list[_Text]]:
    """Sort texts by length and cut them into parts of up to `PART_ROWS`, so that padding costs little."""
    ordered = sorted(texts, key=length)
    return [ordered[start : start + PART_ROWS] for start in range(0, len(ordered), PART_ROWS)]
