"""The figures of a variant on the test photos, each stored as one value per photo.

Captions of one photo are correlated, so the sampling unit is the photo: a figure is the mean of the photos'
values, and its standard error their standard deviation over the square root of their number. A figure per
caption or per token is a ratio of two sums over photos; its per-photo values are the linearised ratio (delta
method). Two variants are compared photo by photo, so that easy and hard photos cancel out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.caption_metrics import score_captions
from benchmarks.datasets import CaptionedImage
from benchmarks.recall import CUTOFFS, rank_first_positives
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import IGNORED
from encoders.precision import autocast
from training.ablations.batches import prompt_images, split_texts
from training.ablations.variants import AblatedModel, Reading

_BATCH = 100
_SCALE_BYTES = 4  # of each token, in float32
_EMBEDDING_BYTES = 2  # of each value, in float16

Floats = NDArray[np.float64]


class Measure(NamedTuple):
    """A figure and its standard error."""

    value: float
    error: float


class Measures(NamedTuple):
    """Results on the test photos. figures: by name, values (photos,); the figure is their mean.

    Recall is in per cent, and missing for a model that embeds nothing. bytes_an_image: int8 tokens, their
    scales and, if there is one, a float16 embedding.
    """

    figures: dict[str, list[float]]
    bytes_an_image: int


@torch.no_grad()
def measure_model(
    model: AblatedModel,
    builder: InputBuilder,
    features: Tensor,
    images: Sequence[CaptionedImage],
    longest: int,
) -> Measures:
    """Measure a model on photos, given their features (photos, tokens, width) and captions."""
    model.eval()
    with autocast(torch.device("cpu")):
        reading = _read_photos(model, builder, features)
        figures = {} if model.variant.reading == "image" else _measure_recall(model, builder, reading, images)
        figures["cross_entropy"] = _measure_cross_entropy(model, builder, reading.memory, images)
        figures["cider_d"] = _measure_captions(model, builder, reading.memory, images, longest)
    by_photo = {name: values.tolist() for name, values in figures.items()}
    return Measures(by_photo, count_bytes(model, reading.memory))


def average(values: Floats, spread: float = 0.0) -> Measure:
    """The mean over photos and its error; spread: additional variance of the mean, such as that of seeds."""
    return Measure(float(values.mean()), float((values.var(ddof=1) / len(values) + spread) ** 0.5))


def divide(sums: Floats, counts: Floats) -> Floats:
    """Per-photo values of the ratio sum(sums) / sum(counts), linearised: same mean, same standard error."""
    ratio = sums.sum() / counts.sum()
    return np.asarray(ratio + (sums - ratio * counts) / counts.mean(), np.float64)


def count_bytes(model: AblatedModel, memory: Tensor) -> int:
    """The bytes that an index would store per image."""
    values, width = memory[0].numel(), model.summary_shape[1]
    embedding = 0 if model.variant.reading == "image" else _EMBEDDING_BYTES * width
    return values + _SCALE_BYTES * (values // width) + embedding


def _read_photos(model: AblatedModel, builder: InputBuilder, features: Tensor) -> Reading:
    parts = [model.read(prompt_images(builder, len(part)), part) for part in features.split(_BATCH)]
    return Reading(*(torch.cat(list(side)) for side in zip(*parts, strict=True)))


def _measure_recall(
    model: AblatedModel, builder: InputBuilder, reading: Reading, images: Sequence[CaptionedImage]
) -> dict[str, Floats]:
    captions = [caption for image in images for caption in image.captions]
    owners = np.array([row for row, image in enumerate(images) for _ in image.captions], np.int64)
    order = np.argsort([len(caption) for caption in captions])  # so that padding costs little
    embedded = model.embed_texts(split_texts(builder, [captions[place] for place in order], _BATCH)).numpy()
    texts = np.empty_like(embedded)
    texts[order] = embedded
    photos, rows = model.embed(reading.summaries).numpy(), np.arange(len(images), dtype=np.int64)
    found = rank_first_positives(texts, photos, owners, rows)
    told = rank_first_positives(photos, texts, rows, owners)
    figures = {f"recall@{cutoff}": _average_hits(found <= cutoff, owners) for cutoff in CUTOFFS}
    return {**figures, "image to text recall@10": 100 * (told <= 10).astype(np.float64)}


def _average_hits(hits: NDArray[np.bool_], owners: NDArray[np.int64]) -> Floats:
    """The percentage of captions that hit, as values per photo; photos may differ in number of captions."""
    sums, counts = np.zeros((2, owners.max() + 1))
    np.add.at(sums, owners, 100 * hits)
    np.add.at(counts, owners, 1)
    return divide(sums, counts)


def _measure_cross_entropy(
    model: AblatedModel, builder: InputBuilder, memory: Tensor, images: Sequence[CaptionedImage]
) -> Floats:
    pairs = [(row, caption) for row, image in enumerate(images) for caption in image.captions]
    pairs.sort(key=lambda pair: len(pair[1]))
    nats, tokens = np.zeros(len(images)), np.zeros(len(images))
    for start in range(0, len(pairs), _BATCH):
        part = pairs[start : start + _BATCH]
        rows = [row for row, _ in part]
        inputs, labels = builder.answers(
            [builder.prompts.caption] * len(part), [caption for _, caption in part]
        )
        losses = model.token_losses(memory[rows], inputs, labels)
        np.add.at(nats, rows, losses.sum(dim=1).double().numpy())
        np.add.at(tokens, rows, (labels[:, 1:] != IGNORED).sum(dim=1).numpy())
    return divide(nats, tokens)


def _measure_captions(
    model: AblatedModel,
    builder: InputBuilder,
    memory: Tensor,
    images: Sequence[CaptionedImage],
    longest: int,
) -> Floats:
    end, said = builder.tokenizer.eos_token_id, []
    for part in memory.split(_BATCH):
        inputs = builder.questions([builder.prompts.caption] * len(part))
        said += builder.tokenizer.batch_decode(
            model.say(part, inputs, longest, end), skip_special_tokens=True
        )
    scores = score_captions(said, [image.captions for image in images])
    return np.array(scores.each_cider_d, np.float64)
