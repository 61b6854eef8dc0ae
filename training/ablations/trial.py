"""One variant trained and measured: the unit of an ablation."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.datasets import CaptionedImage
from encoders.base import DatasetError
from encoders.fwd2bot.inputs import InputBuilder
from encoders.precision import autocast
from training.ablations.batches import deal_batch, prompt_images
from training.ablations.measures import Measures, measure_model
from training.ablations.phases import run_phase
from training.ablations.settings import AblationSettings, PhaseSettings
from training.ablations.stock import Stock, average_answers
from training.ablations.variants import AblatedModel, Variant, count_placeholders, make_model
from training.deal import Deal
from training.losses import ContrastiveLoss
from training.sources.base import Source


class Trial(NamedTuple):
    """The results of one variant with one seed. losses: of every training step."""

    variant: str
    seed: int
    trained_weights: int
    images_per_second: float
    losses: list[float]
    measures: Measures


def run_trial(
    settings: AblationSettings,
    variant: Variant,
    seed: int,
    stock: Stock,
    source: Source,
    test: Sequence[CaptionedImage],
) -> Trial:
    """Train a new instance of a variant on the batches of a seed, and measure it on the test photos."""
    torch.manual_seed(seed)
    model = make_model(stock.lvlm, variant, settings.summary_tokens, settings.rank)
    builder = stock.write_prompts(count_placeholders(variant, settings.summary_tokens, stock.image_tokens))
    phase = _adapt_phase(settings, variant)
    losses = TrialLosses(settings, model, builder, Deal("photos", source, seed), stock.train)
    seconds = run_phase(f"{variant.name}, seed {seed}", phase, losses.parameters(), losses.find_loss)
    return Trial(
        variant.name,
        seed,
        sum(each.numel() for each in model.parameters() if each.grad is not None),
        phase.steps * phase.photos / seconds,
        losses.seen,
        measure_model(model, builder, stock.test, test, settings.longest_caption),
    )


class TrialLosses:
    """The losses of a variant, step by step."""

    def __init__(
        self,
        settings: AblationSettings,
        model: AblatedModel,
        builder: InputBuilder,
        deal: Deal,
        views: Tensor,
    ) -> None:
        """views: features (copies, photos, tokens, width) of all training photos."""
        self.settings, self.model, self.builder = settings, model, builder
        self.deal, self.views = deal, views
        self.contrastive = ContrastiveLoss()
        self.prompt = prompt_images(builder, settings.variant.photos)
        self.seen: list[float] = []

    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters of the model, and the temperature."""
        return [*self.model.parameters(), *self.contrastive.parameters()]

    def find_loss(self, step: int) -> Tensor:
        """The weighted loss of a step; all its photos are read in the same randomly chosen copy of views."""
        settings, model = self.settings, self.model.train()
        batch = deal_batch(self.deal, self.builder, step, settings.variant.photos)
        copy = Random(f"{self.deal.seed} {step}").randrange(len(self.views))
        with autocast(torch.device("cpu")):
            reading = model.read(self.prompt, self.views[copy, batch.rows])
            loss = torch.zeros(())
            if model.variant.contrastive:
                targets = model.embed_texts(batch.targets)
                rows = model.embed(reading.summaries)
                with torch.autocast("cpu", enabled=False):  # in float32, as `training.train` does
                    compared = self.contrastive(rows, targets, batch.rows, batch.target_rows)
                loss = loss + settings.contrastive_weight * compared
            if model.variant.answer:
                answered = average_answers(model.token_losses, reading.memory, batch.answers)
                loss = loss + settings.answer_weight * answered
        self.seen.append(loss.item())
        return loss


def _adapt_phase(settings: AblationSettings, variant: Variant) -> PhaseSettings:
    if variant.trained != "llm":
        return settings.variant
    optimizer = replace(settings.variant.optimizer, learning_rate=settings.llm_rate)
    return replace(settings.variant, optimizer=optimizer)


def write_trial(path: Path, trial: Trial) -> None:
    """Write a trial as JSON, atomically."""
    temporary = path.with_suffix(".tmp")
    record = {**trial._asdict(), "measures": trial.measures._asdict()}
    temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_trial(path: Path) -> Trial:
    """Read what `write_trial` wrote; raises DatasetError if the file holds anything else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        measures = record.pop("measures")
        figures = {name: list(map(float, values)) for name, values in measures["figures"].items()}
        return Trial(**record, measures=Measures(figures, int(measures["bytes_an_image"])))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} is not a trial ({error}): remove it, and it is run again") from error
