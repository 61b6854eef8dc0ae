"""The data settings of a run: sources by name, and how many rows of each a batch holds.

    [sources.photos]
    kind = "karpathy"
    ...
    [[batches]]
    steps = 1000
    counts = { photos = 96, scenes = 32 }

Paths are relative to the data folder that the command is given. For every source, `contrastive` says whether
its rows take part in the contrastive loss, and `answer` whether pass 2 learns to generate its texts: using
short captions for the one and long ones for the other is a choice about the data, so it is made here.
"""

from dataclasses import dataclass
from typing import Literal

from training.typed_toml import Count, CountOrZero, PositiveOrZero, Share


@dataclass(frozen=True)
class KarpathySettings:
    """Photos and captions in Karpathy's JSON (Flickr8k, Flickr30k, COCO); `images` is the photos' folder.

    in_memory: decode all photos once, at the start; for a small set of small photos that is read many times.
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
    """Instructions in the format of llava_v1_5_mix665k.json, or one such record per line in a .jsonl."""

    kind: Literal["conversations"]
    annotations: str
    images: str
    contrastive: bool
    answer: bool


@dataclass(frozen=True)
class CaptionTableSettings:
    """A .parquet or .jsonl with one row per picture: its path below `images`, and columns of captions.

    A caption column holds one text or a list of texts. negative_columns: columns of the same form, with
    captions that are false of the picture, as hard negatives of the contrastive loss. A row may have none.
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
    """WebDataset shards, as img2dataset writes them; the last component of `shards` may contain `*`."""

    kind: Literal["webdataset"]
    shards: str
    contrastive: bool
    answer: bool


@dataclass(frozen=True)
class CaptionGroupSettings:
    """Lines of {"captions": [...]}, each about one picture that is not available; its captions match."""

    kind: Literal["caption_groups"]
    captions: str
    contrastive: bool
    answer: bool


@dataclass(frozen=True)
class UnlabelledSettings:
    """Pictures without captions: every JPEG, PNG, WebP, GIF, BMP and TIFF file below a folder.

    They are trained on only through teachers' embeddings (see `training.guides`).
    """

    kind: Literal["unlabelled"]
    images: str

    contrastive = False
    answer = False


@dataclass(frozen=True)
class DrawnSettings:
    """Scenes drawn for one step, or families of four that differ in one property (`training.families`).

    most_things: the most objects in a scene, up to 3; shapes are learned fastest from single objects.
    questions: how many are asked about each scene in addition to its caption; 0 picks either one question or
    the caption at random. No questions are asked about families.
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
    """The composition of the global batch for a number of steps: rows of each source, by name.

    tower_only: train only the path from pixels to image features, with the word loss on the captions.
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
