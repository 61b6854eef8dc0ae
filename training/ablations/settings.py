"""Every setting of the ablations, read from one TOML file."""

from dataclasses import dataclass

from training.data_settings import AugmentationSettings, KarpathySettings
from training.settings import OptimizerSettings
from training.typed_toml import Count, Positive, PositiveOrZero


@dataclass(frozen=True)
class PhaseSettings:
    """So many steps of so many photos, each with one caption to be matched and one to be said."""

    steps: Count
    photos: Count
    optimizer: OptimizerSettings


@dataclass(frozen=True)
class AblationSettings:
    """All that the variants have in common.

    checkpoint: whose LVLM the stock one starts from; "" for that of the embedded model. copies: random views
    of each training photo. rank: of an adapter, and its alpha. llm_rate: learning rate where the LLM itself
    is trained, which that of adapters would harm. longest_caption: tokens that are said of a test photo.
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
