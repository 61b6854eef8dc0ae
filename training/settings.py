"""Every setting of a training run, read from one TOML file and written into its checkpoint."""

import tomllib
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from encoders.base import DatasetError
from encoders.fwd2bot.model import AdapterSettings
from encoders.fwd2bot.prompts import Prompts

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class DataSettings:
    """Where the data lie. Relative paths start at the current folder."""

    annotations: str
    images: str
    splits: tuple[str, ...]
    validation_split: str
    caption_groups: str


@dataclass(frozen=True)
class LvlmSettings:
    """A small FastVLM (LLaVA with a convolutional tower) to be trained from scratch."""

    image_size: int
    tower_stem: int
    tower_widths: tuple[int, ...]
    tower_depths: tuple[int, ...]
    vocabulary: int
    width: int
    intermediate: int
    layers: int
    heads: int


@dataclass(frozen=True)
class BatchSettings:
    """For so many steps: how many of each kind a batch holds; see `training.families` for families.

    tower_only: train nothing but the way from pixels to image features, by the words of the captions.
    """

    steps: int
    tower_only: bool
    photos: int
    scenes: int
    families: int
    caption_pairs: int


@dataclass(frozen=True)
class AugmentationSettings:
    """Random views of photos; see `training.augment`."""

    smallest_crop: float
    colour_jitter: float
    erased: float


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW; the rate rises over `warmup_steps`, stays, and falls to zero over the last `cooldown_steps`."""

    learning_rate: float
    weight_decay: float
    warmup_steps: int
    cooldown_steps: int
    gradient_norm: float


@dataclass(frozen=True)
class TrainingSettings:
    """One run. contrastive_weight and answer_weight are c and a of the joint loss.

    feature_weight, word_weight: of a contrastive loss on the mean image features, and of telling a caption's
    words from them: short ways for gradients to a vision tower that starts from nothing (deep supervision).
    Both are 0 for a pretrained tower, and in the paper.
    compiled: have torch.compile fuse each layer of the LLM, which asks for a C++ compiler.
    """

    seed: int
    summary_tokens: int
    contrastive_weight: float
    answer_weight: float
    feature_weight: float
    word_weight: float
    validate_every: int
    checkpoint_seconds: float
    compiled: bool
    data: DataSettings
    lvlm: LvlmSettings
    prompts: Prompts
    adapters: AdapterSettings
    augmentation: AugmentationSettings
    optimizer: OptimizerSettings
    batches: tuple[BatchSettings, ...]

    @property
    def total_steps(self) -> int:
        """Steps of all batches."""
        return sum(batch.steps for batch in self.batches)


def read_settings(path: Path) -> TrainingSettings:
    """Read a TOML file; a missing, unknown or ill-typed setting raises DatasetError with its name."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as training settings: {error}") from error
    return _build(TrainingSettings, values, str(path))


def write_settings(settings: TrainingSettings) -> dict[str, Any]:
    """Plain values, to be stored in a checkpoint."""
    return asdict(settings)


def _build(kind: type[Settings], values: Any, where: str) -> Settings:
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(values, dict) or sorted(values) != sorted(names):
        given = sorted(values) if isinstance(values, dict) else values
        raise DatasetError(f"{where} must hold exactly {', '.join(sorted(names))}, and holds {given}")
    hints = get_type_hints(kind)
    return kind(**{name: _convert(hints[name], values[name], f"{where}: {name}") for name in names})


def _convert(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _build(kind, value, where)  # type: ignore[arg-type]
    if get_args(kind):
        if not isinstance(value, list):
            raise DatasetError(f"{where} must be a list, and is {value!r}")
        return tuple(_convert(get_args(kind)[0], item, where) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise DatasetError(f"{where} must be {kind.__name__}, and is {value!r}")
    return value
