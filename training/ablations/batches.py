"""The rows of a step: photos, each with a caption to match and one to generate, from seed and step alone."""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchEncoding

from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import Answers
from training.deal import Deal
from training.packing import Row, pack_answers, pack_targets


class Batch(NamedTuple):
    """rows: int64 (n,), row numbers in the source. targets, answers: padded parts, sorted by length."""

    rows: Tensor
    targets: list[BatchEncoding]
    target_rows: Tensor
    answers: list[Answers]


def deal_batch(deal: Deal, builder: InputBuilder, step: int, photos: int) -> Batch:
    """The batch of a step; every photo comes once per epoch, in a new order each epoch."""
    dealt = deal.deal_rows(step * photos, photos, Random(f"{deal.seed} {step}"))
    rows = [Row(each.row, each.sample, contrastive=True, answer=True) for each in dealt]
    targets = pack_targets(builder, rows)
    return Batch(
        torch.tensor([row.id for row in rows]), targets.parts, targets.ids, pack_answers(builder, rows)
    )


def prompt_images(builder: InputBuilder, count: int) -> BatchEncoding:
    """The prompt of pass 1 for images, repeated `count` times."""
    size = builder.processor.image_processor.size
    one = builder.images([Image.new("RGB", (size["width"], size["height"]))])
    names = ("input_ids", "attention_mask")
    return BatchEncoding({name: one[name].expand(count, -1) for name in names})


def split_texts(builder: InputBuilder, texts: Sequence[str], size: int) -> list[BatchEncoding]:
    """Cut texts, in their order, into padded parts of `size` rows."""
    return [builder.texts(texts[start : start + size]) for start in range(0, len(texts), size)]
