"""What a run is judged by while it goes on: recall and caption cross-entropy on held-out photos."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from benchmarks.datasets import CaptionedImage
from benchmarks.recall import report_pairs
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import IGNORED, Fwd2Bot, pool

_BATCH = 32


class Validation:
    """Held-out photos with the first caption of each: quick, and not the benchmark's figure."""

    def __init__(self, images: Sequence[CaptionedImage], builder: InputBuilder) -> None:
        self.images, self.builder = images, builder

    @torch.no_grad()  # inference tensors could not be trained on, where weights are gathered for a while
    def measure(self, model: Fwd2Bot) -> dict[str, float]:
        """Recall in per cent and nats a token, by name."""
        model.eval()
        vectors, texts, losses, tokens = [], [], 0.0, 0
        for start in range(0, len(self.images), _BATCH):
            part = self.images[start : start + _BATCH]
            captions = [image.captions[0] for image in part]
            with torch.autocast(model.device.type, torch.bfloat16):
                summaries = model.compress(
                    self.builder.images([_open(image) for image in part]).to(model.device)
                )
                texts.append(pool(model.compress(self.builder.texts(captions).to(model.device))))
                inputs, labels = self.builder.answers([self.builder.prompts.caption] * len(part), captions)
                losses += float(
                    model.token_losses(summaries, inputs.to(model.device), labels.to(model.device)).sum()
                )
            vectors.append(pool(summaries))
            tokens += int((labels[:, 1:] != IGNORED).sum())
        report = report_pairs(
            torch.cat(vectors).cpu().numpy(),
            torch.cat(texts).cpu().numpy(),
            np.arange(len(self.images)).tolist(),
        )
        hits = {f"recall@{cutoff}": 100 * hit for cutoff, hit in report.text_to_image.hits.items()}
        return {**hits, "caption_cross_entropy": losses / tokens}


def _open(image: CaptionedImage) -> Image.Image:
    with Image.open(image.path) as photo:
        return photo.convert("RGB")
