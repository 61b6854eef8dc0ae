"""What a run reads, as its settings file says it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSettings:
    """Where the data lie. Relative paths start at the current folder."""

    annotations: str
    images: str
    splits: tuple[str, ...]
    validation_split: str
    caption_groups: str


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
