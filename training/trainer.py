"""The training step: all losses over the global batch of all ranks, and one optimizer update."""

import math
from collections.abc import Iterable
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from encoders.base import DatasetError, TrainingDiverged
from encoders.fwd2bot.model import Fwd2Bot, JointOutput
from encoders.precision import autocast
from training.data import Step
from training.distributed import Ranks
from training.grad_cache import Chunk, Embeddings, accumulate_gradients, split_step
from training.guides import Guides
from training.losses import ContrastiveLoss, SigmoidLoss, WordLoss, bound_scale, compare_affinities
from training.settings import DistillationSettings, OptimizerSettings, TrainingSettings
from training.sharding import align_chunks, require_shards_fit, shard_frozen_weights, wants_shards

_LOSSES = {"infonce": ContrastiveLoss, "sigmoid": SigmoidLoss}


class StepReport(NamedTuple):
    """The results of a step: losses by name, and the number of images and LLM tokens read on all ranks."""

    losses: dict[str, float]
    temperature: float
    rate: float
    images: int
    tokens: int


class Trainer:
    """Model, losses, optimizer and progress of one run.

    best: the best validation score so far (`training.validate.score_measures`).
    """

    def __init__(
        self, settings: TrainingSettings, model: Fwd2Bot, words: WordLoss | None, ranks: Ranks
    ) -> None:
        """words: None for a model without a word loss."""
        self.settings, self.ranks = settings, ranks
        self.model = model
        self.contrastive = _LOSSES[settings.contrastive_loss]().to(ranks.device)
        self.words = words.to(ranks.device) if words else None
        self._require_exact_gradients()
        if settings.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        if settings.compiled:
            model.compile_layers()
        self.sharded = wants_shards(ranks)
        if self.sharded:
            require_shards_fit(settings)
            shard_frozen_weights(model, ranks)
        model.to(ranks.device)  # shards are there already; the whole model might not fit
        losses = [self.contrastive, *([self.words] if self.words else [])]
        parameters = [each for module in [model, *losses] for each in module.parameters()]
        self.optimizer = make_optimizer(parameters, settings.optimizer)
        self.step, self.best = 0, -math.inf

    def train_step(self, batch: Step) -> StepReport:
        """Forward, backward and update.

        Raises TrainingDiverged, before the update, if a loss or the gradient is not finite.
        """
        rate = schedule_rate(self.settings.optimizer, self.step, self.settings.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._start_training()
        self.optimizer.zero_grad(set_to_none=True)
        batch = batch.to(self.ranks.device)
        losses = self._run_tower(batch) if batch.tower_only else self._run_both_passes(batch)
        # The losses' own parameters already have the gradient of the global batch on every rank.
        self.ranks.add_gradients(self.model.parameters())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.optimizer.gradient_norm)
        self._require_finite("length of the gradient", norm, batch)
        self.optimizer.step()
        bound_scale(self.contrastive)
        self.step += 1
        shown = {name: value.item() for name, value in losses.items()}
        images, tokens = self.ranks.add(self._count(batch)).tolist()
        return StepReport(shown, self.contrastive.temperature, rate, images, tokens)

    def _run_both_passes(self, batch: Step) -> dict[str, Tensor]:
        """The two losses of the paper and the auxiliary ones, each where its weight is not 0."""
        settings, losses = self.settings, dict[str, Tensor]()

        def measure(rows: Embeddings) -> Tensor:
            losses.update(self._compare(rows, batch))
            return self._weigh(losses, batch)

        matched = settings.contrastive_weight or settings.feature_weight or settings.distillation
        step = Chunk(
            batch.sources,
            batch.targets if matched else [],
            batch.answers if settings.answer_weight else [],
        )
        image_token = self.model.image_token
        seed = Random(f"{settings.seed} {self.step} {self.ranks.rank}").getrandbits(60)
        chunks = split_step(step, settings.chunk_size, image_token)
        if self.sharded:
            chunks = align_chunks(chunks, settings.summary_tokens, image_token, self.ranks)
        answer = accumulate_gradients(
            self._forward, chunks, measure, settings.answer_weight, self.ranks, seed
        )
        if settings.answer_weight:
            losses["answer"] = answer
            self._weigh(losses, batch)
        return losses

    def _forward(self, chunk: Chunk) -> JointOutput:
        with autocast(self.ranks.device):
            output: JointOutput = self.model(chunk.sources, chunk.targets, chunk.answers)
        return output

    def _compare(self, rows: Embeddings, batch: Step) -> dict[str, Tensor]:
        """The losses on embeddings, over the rows of all ranks, by name."""
        settings, gather = self.settings, self.ranks.gather
        ids, paired, losses = batch.source_ids, batch.paired, dict[str, Tensor]()
        targets, target_ids = gather(rows.targets), gather(batch.target_ids[: len(rows.targets)])
        if settings.contrastive_weight and len(targets):
            sources, source_ids = gather(rows.sources[paired]), gather(ids[paired])
            losses["contrastive"] = self.contrastive(sources, targets, source_ids, target_ids)
        images, shown = gather(rows.images), paired[: len(rows.images)]
        if settings.feature_weight and len(targets):
            features = gather(normalize(rows.images[shown], dim=-1))
            image_ids = gather(ids[: len(rows.images)][shown])
            if len(features):  # empty if only texts are paired
                losses["feature"] = self.contrastive(features, targets, image_ids, target_ids)
        if settings.word_weight and self.words and len(images):
            losses["word"] = self.words(images, gather(batch.words))
        if settings.distillation and batch.guides:
            losses["affinity"] = self._compare_with_teachers(rows, batch.guides, settings.distillation)
        return losses

    def _compare_with_teachers(
        self, rows: Embeddings, guides: Guides, settings: DistillationSettings
    ) -> Tensor:
        count = len(rows.sources) + len(rows.targets)
        pictured = torch.arange(count, device=rows.sources.device) < len(rows.images)
        ours, theirs, pictured = (
            self.ranks.gather(each)
            for each in (torch.cat([rows.sources, rows.targets]), torch.cat(guides), pictured)
        )
        return compare_affinities(ours, theirs, pictured, settings.temperature)

    def _run_tower(self, batch: Step) -> dict[str, Tensor]:
        """The word loss and its backward, without running the LLM."""
        assert self.words is not None  # `require_losses` and `make_initial_model` ensure it
        (inputs,) = batch.sources
        with autocast(self.ranks.device):
            images = self.model.average_features(self.model.image_features(inputs), inputs)
        losses = {"word": self.words(self.ranks.gather(images), self.ranks.gather(batch.words))}
        self._weigh(losses, batch).backward()
        return losses

    def _weigh(self, losses: dict[str, Tensor], batch: Step) -> Tensor:
        """The weighted sum of the losses; raises TrainingDiverged if it is not finite."""
        weighted = [getattr(self.settings, f"{name}_weight") * value for name, value in losses.items()]
        loss = torch.stack(weighted or [torch.zeros(())]).sum()
        self._require_finite("loss", loss, batch)
        return loss

    def _require_finite(self, name: str, value: Tensor, batch: Step) -> None:
        if not torch.isfinite(value):
            raise TrainingDiverged(
                f"the {name} is {value.item()} at step {self.step}",
                self.ranks.gather(batch.source_ids).tolist(),
            )

    def _count(self, batch: Step) -> Tensor:
        """Images and LLM tokens of a step, including summary tokens: int64 (2,)."""
        passes = [*batch.sources, *batch.targets, *(part.inputs for part in batch.answers)]
        tokens = 0 if batch.tower_only else sum(int(inputs["attention_mask"].sum()) for inputs in passes)
        summaries = 0 if batch.tower_only else len(batch.source_ids) + len(batch.target_ids)
        images = sum(len(inputs["input_ids"]) for inputs in batch.sources if "pixel_values" in inputs)
        read = tokens + summaries * self.model.summary_shape[0]
        return torch.tensor([images, read], device=self.ranks.device)

    def _start_training(self) -> None:
        """Training mode, except for frozen batch norms, whose running statistics must not change."""
        self.model.train()
        for module in _find_batch_norms(self.model):
            module.train(any(parameter.requires_grad for parameter in module.parameters()))

    def _require_exact_gradients(self) -> None:
        trained = any(
            parameter.requires_grad
            for module in _find_batch_norms(self.model)
            for parameter in module.parameters()
        )
        if trained and (self.settings.chunk_size or self.ranks.count > 1):
            raise DatasetError(
                "A tower with batch normalisation is trained on whole batches in one process: set "
                f"chunk_size = 0, which is {self.settings.chunk_size}, and start 1 process, not "
                f"{self.ranks.count}"
            )


def make_optimizer(parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW on the trainable parameters; its learning rate is set before every step (`schedule_rate`)."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    others = [parameter for parameter in trained if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},  # norms, biases and the temperature
    ]
    return torch.optim.AdamW(groups, settings.learning_rate, fused=True)


def schedule_rate(settings: OptimizerSettings, step: int, total: int) -> float:
    """The learning rate at a step: linear warm-up, constant, linear cooldown."""
    rising = (step + 1) / max(settings.warmup_steps, 1)
    falling = (total - step) / max(settings.cooldown_steps, 1)
    return settings.learning_rate * min(1.0, rising, falling)


def _find_batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
