"""Every setting of a training run, read from one TOML file and written into its checkpoint."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from encoders.base import DatasetError
from encoders.fwd2bot.adapters import NONE, AdapterSettings
from encoders.fwd2bot.prompts import Prompts
from training.data_settings import AugmentationSettings as AugmentationSettings
from training.data_settings import BatchSettings as BatchSettings
from training.data_settings import CaptionGroupSettings, UnlabelledSettings
from training.data_settings import SourceSettings as SourceSettings
from training.data_settings import ValidationSettings as ValidationSettings
from training.typed_toml import Count, CountOrZero, Positive, PositiveOrZero, Seed, build_settings, read_toml


@dataclass(frozen=True)
class LvlmSettings:
    """A small FastVLM (LLaVA with a convolutional tower) to be trained from scratch."""

    image_size: Count
    tower_stem: Count
    tower_widths: tuple[Count, ...]
    tower_depths: tuple[Count, ...]
    vocabulary: Count
    width: Count
    intermediate: Count
    layers: Count
    heads: Count

    def __post_init__(self) -> None:
        if not self.tower_widths or len(self.tower_widths) != len(self.tower_depths):
            raise DatasetError(
                "A tower has a width and a depth for each of its stages: tower_widths are "
                f"{list(self.tower_widths)}, and tower_depths {list(self.tower_depths)}"
            )
        if self.width % (2 * self.heads):
            raise DatasetError(
                f"A width of {self.width} is not shared evenly by {self.heads} heads: take a multiple of "
                f"{2 * self.heads}"
            )


@dataclass(frozen=True)
class BaseSettings:
    """A frozen pretrained LVLM; only adapters and summary tokens are trained.

    base: its folder or hub name. quantize: "4bit" keeps the frozen weights in NF4 (QLoRA), which needs a GPU.
    """

    base: str
    quantize: Literal["none", "4bit"]


@dataclass(frozen=True)
class CheckpointSettings:
    """A Fwd2Bot checkpoint that is trained further.

    checkpoint: a folder, a hub name, or "tiny". image_size: side in pixels of its input pictures from now on,
    or 0 to keep the checkpoint's; only a convolutional tower can change it. trained: "all" weights, or
    "generate" for the adapter of pass 2 only, which leaves embeddings and summary tokens bit-identical.
    tower: a training.two_tower run whose image tower replaces the checkpoint's (see `training.graft`), or ""
    for none.
    """

    checkpoint: str
    image_size: CountOrZero = 0
    trained: Literal["all", "generate"] = "all"
    tower: str = ""


@dataclass(frozen=True)
class DistillationSettings:
    """Learn from embeddings that teachers computed beforehand.

    teachers: the folder that `training.teach` wrote. weight: of the loss (`losses.compare_affinities`).
    temperature: divides the cosines of both the model and the teachers.
    """

    teachers: str
    weight: PositiveOrZero
    temperature: Positive


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW; linear warm-up over `warmup_steps`, then constant, then linear to 0 over `cooldown_steps`."""

    learning_rate: Positive
    weight_decay: PositiveOrZero
    warmup_steps: CountOrZero
    cooldown_steps: CountOrZero
    gradient_norm: Positive


@dataclass(frozen=True)
class TrainingSettings:
    """One run. contrastive_weight and answer_weight are c and a of the joint loss.

    feature_weight, word_weight: of a contrastive loss on the mean image features, and of predicting a
    caption's words from them. They give a vision tower trained from scratch a short gradient path (deep
    supervision). Both are 0 for a pretrained tower, and in the paper.
    contrastive_loss: symmetric InfoNCE (a softmax over the batch), or SigLIP's sigmoid of each pair.
    chunk_size: how many sources or targets are in memory at once; 0 for all. The gradient is the same (see
    `training.grad_cache`), at the cost of one more forward.
    gradient_checkpointing: keep one activation per layer, and recompute the others in the backward.
    compiled: have torch.compile fuse each layer of the LLM, which needs a C++ compiler.
    workers: processes that prepare steps.
    longest_answer: the most tokens of an answer to train on; a longer one is cut, and has no end token.
    augmentation: None leaves pictures to the LVLM's own processor.
    """

    seed: Seed
    summary_tokens: Count
    contrastive_weight: PositiveOrZero
    answer_weight: PositiveOrZero
    feature_weight: PositiveOrZero
    word_weight: PositiveOrZero
    contrastive_loss: Literal["infonce", "sigmoid"]
    chunk_size: CountOrZero
    gradient_checkpointing: bool
    validate_every: Count
    checkpoint_seconds: PositiveOrZero
    compiled: bool
    workers: CountOrZero
    sources: dict[str, SourceSettings]
    validation: ValidationSettings
    lvlm: LvlmSettings | BaseSettings | CheckpointSettings
    prompts: Prompts
    adapters: AdapterSettings
    optimizer: OptimizerSettings
    batches: tuple[BatchSettings, ...]
    longest_answer: Count = 256
    augmentation: AugmentationSettings | None = None
    distillation: DistillationSettings | None = None

    def __post_init__(self) -> None:
        rank, alpha, mode = self.adapters.rank, self.adapters.alpha, self.adapters.mode
        if mode != NONE and min(rank, alpha) < 1:
            raise DatasetError(
                f"Adapters of rank {rank} and alpha {alpha} learn nothing: give 1 or more of both"
            )

    @property
    def affinity_weight(self) -> float:
        """Weight of the distillation loss; 0 without teachers."""
        return self.distillation.weight if self.distillation else 0.0

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, summed over all batches."""
        return sum(batch.steps for batch in self.batches)


def read_settings(path: Path, overrides: Sequence[str] = (), until: int | None = None) -> TrainingSettings:
    """Read a TOML file with `dotted.name=value` overrides; raises DatasetError saying what is wrong.

    until: the step to end the run at, earlier than the file says.
    """
    settings = read_toml(path, TrainingSettings, overrides)
    return settings if until is None else end_run_at(settings, until)


def end_run_at(settings: TrainingSettings, step: int) -> TrainingSettings:
    """Shorten a run to `step` steps; the learning-rate cooldown moves forward with the end.

    Raises DatasetError if the run has fewer steps.
    """
    if not 0 < step <= settings.total_steps:
        raise DatasetError(
            f"The settings have {settings.total_steps} steps: a run ends at one of these, and not at {step}"
        )
    batches, left = list[BatchSettings](), step
    for batch in settings.batches:
        batches.append(replace(batch, steps=min(batch.steps, left)))
        left -= batches[-1].steps
    return replace(settings, batches=tuple(batch for batch in batches if batch.steps))


def require_losses(settings: TrainingSettings) -> None:
    """Raise DatasetError if a batch has rows that no loss with a nonzero weight learns from."""
    batches = [batch for batch in settings.batches if batch.steps]
    if any(batch.tower_only for batch in batches) and not settings.word_weight:
        raise DatasetError(
            "Batches with tower_only would train nothing: they learn by word_weight, which is 0"
        )
    if settings.word_weight and settings.augmentation is None:
        raise DatasetError(
            "word_weight needs the views that [augmentation] makes: give that table, or set word_weight = 0"
        )
    for name in {name for batch in batches for name, count in batch.counts.items() if count}:
        source = settings.sources.get(name)
        wanting = _find_losses(settings, source) if source else {}
        # `require_batches` reports sources that do not exist, and those that no loss may read.
        if wanting and not any(wanting.values()):
            raise DatasetError(
                f"Source {name} would train nothing: give a weight to a loss that learns from its rows "
                f"({', '.join(wanting)}), or leave it out"
            )


def _find_losses(settings: TrainingSettings, source: SourceSettings) -> dict[str, float]:
    """The total weight of the losses that may read a source, by the setting that would raise it."""
    described = not isinstance(source, CaptionGroupSettings | UnlabelledSettings)  # pictures with captions
    features, words = (settings.feature_weight, settings.word_weight) if described else (0.0, 0.0)
    reading = {
        "contrastive_weight": (source.contrastive, settings.contrastive_weight + features),
        "answer_weight": (source.answer, settings.answer_weight),
        "distillation.weight": (settings.distillation is not None, settings.affinity_weight),
    }
    return {name: weight + words for name, (reads, weight) in reading.items() if reads}


def restore_settings(values: dict[str, Any], where: str) -> TrainingSettings:
    """Invert `write_settings`; raises DatasetError, naming `where` the values are from, if any is invalid."""
    return build_settings(TrainingSettings, values, where)


def write_settings(settings: TrainingSettings) -> dict[str, Any]:
    """Convert settings to plain values, to be stored in a checkpoint."""
    return asdict(settings)
