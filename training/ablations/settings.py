"""Every setting of the ablations, read from one TOML file."""

from dataclasses import dataclass

from training.data_settings import AugmentationSettings, KarpathySettings
from training.settings import OptimizerSettings
from training.typed_toml import Count, Positive, PositiveOrZero


@dataclass(frozen=True)
class PhaseSettings:
    """A number of steps of `photos` photos, each with one caption to match and one to generate."""

    steps: Count
    photos: Count
    optimizer: OptimizerSettings


@dataclass(frozen=True)
class AblationSettings:
    """The settings that all variants share.

    checkpoint: its LVLM is the starting point of the stock LVLM; "" for that of the embedded model. copies:
    random views of each training photo. rank: of an adapter, and also its alpha. llm_rate: the learning rate
    if the LLM itself is trained, for which that of adapters is too high. longest_caption: the most tokens to
    generate for a test photo.
    """

    seed: int
    checkpoint: str
    photos: KarpathySettings
    test_split: str
    copies: Count
    augmentation: AugmentationSettings
    summary_tokens: Count
    rank: Count
    contrastive_weight: PositiveOrZero
    answer_weight: PositiveOrZero
    llm_rate: Positive
    longest_caption: Count
    stock: PhaseSettings
    variant: PhaseSettings
