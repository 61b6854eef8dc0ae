"""Validation during a run: recall and caption cross-entropy on held-out photos."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import BatchEncoding

from benchmarks.datasets import CaptionedImage, read_karpathy
from benchmarks.embedding import decode_pictures
from benchmarks.recall import PairReport, report_pairs
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import IGNORED, Fwd2Bot, pool
from encoders.precision import autocast
from training.data_settings import ValidationSettings
from training.settings import CheckpointSettings, TrainingSettings

_BATCH = 32
_SIDE_CHECKED = 64  # pixels: enough to detect a damaged file


class Compressor(Protocol):
    """The part of a model that retrieval needs."""

    @property
    def device(self) -> torch.device:
        """The device that inputs must be on."""

    @property
    def summary_shape(self) -> tuple[int, int]:
        """(k, width)."""

    def compress(self, inputs: BatchEncoding) -> Tensor:
        """Compress images or texts to (batch, k, width); retrieval compares the means over k."""


class Validation:
    """Held-out photos with the first caption of each: quick, but not comparable with benchmark recall."""

    def __init__(self, images: Sequence[CaptionedImage], builder: InputBuilder) -> None:
        self.images, self.builder = images, builder
        self.captions = [image.captions[0] for image in images]

    @torch.no_grad()  # not inference_mode: gathered shards would become inference tensors, unfit for training
    def measure(self, model: Fwd2Bot) -> dict[str, float]:
        """Recall (per cent) and caption cross-entropy (nats per token), by name."""
        model.eval()
        summaries = compress_images(model, self.builder, self.images)
        hits = self._measure_hits(model, summaries)
        return {**hits, "caption_cross_entropy": self._measure_answers(model, summaries)}

    @torch.no_grad()
    def measure_recall(self, model: Compressor) -> dict[str, float]:
        """Recall only (per cent, by name), of a model in evaluation mode."""
        return self._measure_hits(model, compress_images(model, self.builder, self.images))

    def _measure_hits(self, model: Compressor, summaries: Tensor) -> dict[str, float]:
        report = report_pairs(
            pool(summaries).cpu().numpy(),
            embed_texts(model, self.builder, self.captions).cpu().numpy(),
            list(range(len(self.images))),
        )
        return {f"recall@{cutoff}": 100 * hit for cutoff, hit in report.text_to_image.hits.items()}

    def _measure_answers(self, model: Fwd2Bot, summaries: Tensor) -> float:
        losses, tokens = 0.0, 0
        for start in range(0, len(self.images), _BATCH):
            captions = self.captions[start : start + _BATCH]
            inputs, labels = self.builder.answers([self.builder.prompts.caption] * len(captions), captions)
            inputs, labels = inputs.to(model.device), labels.to(model.device)
            with autocast(model.device):
                losses += float(model.token_losses(summaries[start : start + _BATCH], inputs, labels).sum())
            tokens += int((labels[:, 1:] != IGNORED).sum())
        return losses / tokens


@torch.no_grad()
def report_recall(model: Compressor, builder: InputBuilder, images: Sequence[CaptionedImage]) -> PairReport:
    """Rank photos and all their captions against each other, as the benchmark does."""
    return report_pairs(
        pool(compress_images(model, builder, images)).cpu().numpy(),
        embed_texts(model, builder, [text for image in images for text in image.captions]).cpu().numpy(),
        [row for row, image in enumerate(images) for _ in image.captions],
    )


def compress_images(model: Compressor, builder: InputBuilder, images: Sequence[CaptionedImage]) -> Tensor:
    """Compress photos to (images, k, width); raises DatasetError if one cannot be decoded."""
    summaries = []
    for start in range(0, len(images), _BATCH):
        paths = [image.path for image in images[start : start + _BATCH]]
        photos = list(decode_pictures(paths, builder.image_side))
        with autocast(model.device):
            summaries.append(model.compress(builder.images(photos).to(model.device)))
    return torch.cat(summaries)


def embed_texts(model: Compressor, builder: InputBuilder, texts: Sequence[str]) -> Tensor:
    """Embed texts as rows of unit length: float32 (texts, width)."""
    rows = []
    for start in range(0, len(texts), _BATCH):
        with autocast(model.device):
            rows.append(pool(model.compress(builder.texts(texts[start : start + _BATCH]).to(model.device))))
    return torch.cat(rows)


def score_measures(measures: dict[str, float], settings: TrainingSettings) -> float:
    """The score that selects the best model: recall@10, or the captions' likelihood if only answers train."""
    lvlm = settings.lvlm
    if isinstance(lvlm, CheckpointSettings) and lvlm.trained == "generate":
        return -measures["caption_cross_entropy"]
    return measures["recall@10"]


def read_held_out(settings: ValidationSettings, data: Path, split: str) -> list[CaptionedImage]:
    """The photos of a split of the validation file; raises DatasetError if one cannot be decoded.

    All are decoded once now, because otherwise a run would find a bad one only after hours.
    """
    images = read_karpathy(data / settings.annotations, data / settings.images, {split})
    paths = tqdm([image.path for image in images], desc=split, unit="photo", disable=None)
    deque(decode_pictures(paths, _SIDE_CHECKED), maxlen=0)
    return images
