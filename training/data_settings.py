"""What a run reads, as its settings file says it: sources by name, and how many rows of each a batch holds.

    [sources.photos]
    kind = "karpathy"
    ...
    [[batches]]
    steps = 1000
    counts = { photos = 96, scenes = 32 }

Paths start at the data folder that the command is given. Of every source, `contrastive` says whether its rows
take part in the contrastive loss and `answer` whether pass 2 learns to say what it holds: that short captions
are for the one and long ones for the other is a rule of the data, and stands here.
"""

from dataclasses import dataclass
from typing import Literal

from training.typed_toml import Count, CountOrZero, PositiveOrZero, Share


@dataclass(frozen=True)
class KarpathySettings:
    """Photos and captions in Karpathy's JSON (Flickr8k, Flickr30k, COCO); `images` is the photos' folder.

    in_memory: decode all photos once, at the start, for a set of small ones that is read many times.
    """

    kind: Literal["karpathy"]
    annotations: str
    images: str
    splits: tuple[str, ...]
    contrastive: bool
    answer: bool
    in_memory: bool = False


@dataclass(frozen=True)
class ConversationSettings:
    """Instructions in the form of llava_v1_5_mix665k.json, or one such record a line in a .jsonl."""

    kind: Literal["conversations"]
    annotations: str
    images: str
    contrastive: bool
    answer: bool


@dataclass(frozen=True)
class CaptionTableSettings:
    """A row for each picture, in a .parquet or a .jsonl: its file below `images`, and columns of captions.

    A caption column holds one text or a list of texts. negative_columns: such columns too, of captions that
    are not true of the picture: hard negatives of the contrastive loss. A row may have none.
    """

    kind: Literal["captions"]
    table: str
    images: str
    image_column: str
    caption_columns: tuple[str, ...]
    contrastive: bool
    answer: bool
    negative_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardSettings:
    """WebDataset shards, as img2dataset writes them; the last part of `shards` may hold `*`."""

    kind: Literal["webdataset"]
    shards: str
    contrastive: bool
    answer: bool


@dataclass(frozen=True)
class CaptionGroupSettings:
    """Lines of {"captions": [...]} about one picture each, not at hand: its captions match each other."""

    kind: Literal["caption_groups"]
    captions: str
    contrastive: bool
    answer: bool


@dataclass(frozen=True)
class UnlabelledSettings:
    """Pictures of which nothing is said: every image file below a folder.

    They teach what teachers see in them (see `training.guides`), and nothing without.
    """

    kind: Literal["unlabelled"]
    images: str

    contrastive = False
    answer = False


@dataclass(frozen=True)
class DrawnSettings:
    """Scenes drawn for one step, or families of four that differ in one thing (`training.families`).

    most_things: how many things a scene holds at most, of 3: shapes are learned soonest from things alone.
    questions: how many are asked about each scene, beside its caption; 0 for one or the other, by chance.
    Families are never asked.
    """

    kind: Literal["scenes", "families"]
    contrastive: bool
    answer: bool
    most_things: Count = 3
    questions: CountOrZero = 0


SourceSettings = (
    KarpathySettings
    | ConversationSettings
    | CaptionTableSettings
    | ShardSettings
    | CaptionGroupSettings
    | UnlabelledSettings
    | DrawnSettings
)


@dataclass(frozen=True)
class ValidationSettings:
    """Held-out photos in Karpathy's JSON."""

    annotations: str
    images: str
    split: str


@dataclass(frozen=True)
class BatchSettings:
    """For so many steps: how many rows of each source, by name, the global batch holds.

    tower_only: train nothing but the way from pixels to image features, by the words of the captions.
    """

    steps: CountOrZero
    counts: dict[str, CountOrZero]
    tower_only: bool = False


@dataclass(frozen=True)
class AugmentationSettings:
    """Random views of photos; see `training.augment`."""

    smallest_crop: Share
    colour_jitter: PositiveOrZero
    erased: PositiveOrZero
