"""Read captioned images from an annotation file: the one place that chooses the reader by the file's name.

Karpathy's JSON (Flickr8k, Flickr30k, COCO), NoCaps' JSON, tables (CSV, TSV, JSON lines, Parquet) and
WebDataset shards each have a module in benchmarks/readers/. Nothing in an annotation file is trusted.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks.readers.base import (
    CaptionedImage,
    join_below,
    keep_present,
    read_text_file,
)
from benchmarks.readers.caption_tables import TABLE_SUFFIXES, parse_table
from benchmarks.readers.karpathy import parse_each_karpathy, parse_karpathy, require_splits
from benchmarks.readers.nocaps import parse_nocaps
from benchmarks.readers.shards import parse_shards
from encoders.base import DatasetError

__all__ = [
    "ALL",
    "CaptionedImage",
    "join_below",
    "keep_present",
    "name_split",
    "parse_dataset",
    "parse_each_karpathy",
    "parse_karpathy",
    "read_karpathy",
]

ALL = "all"  # a name for all splits together, valid for every file
USUAL_SPLIT = "test"


def parse_dataset(dataset: Path, images_dir: Path, split: str | None) -> list[CaptionedImage]:
    """Read a split from a file or a folder of shards, whether or not the photos exist.

    split: None means "test" if there are splits, else "all", which selects everything.
    """
    if dataset.suffix == ".json" and _is_karpathy(dataset):
        return parse_karpathy(dataset, images_dir, None if split == ALL else [split or USUAL_SPLIT])
    if dataset.suffix == ".json":
        images = parse_nocaps(dataset, images_dir)
        split = split or ALL
    elif dataset.suffix in TABLE_SUFFIXES:
        images = parse_table(dataset, images_dir)
    elif dataset.suffix == ".tar" or dataset.is_dir():
        images = parse_shards(dataset)
    else:
        raise DatasetError(
            f"{dataset} is of no known form: give a .json of Karpathy or NoCaps, a table "
            f"({', '.join(TABLE_SUFFIXES)}), or .tar shards."
        )
    return _select_split(images, split, dataset)


def name_split(images: Sequence[CaptionedImage]) -> str:
    """The split that all these images belong to, or "all"."""
    splits = {image.split for image in images}
    return (splits.pop() if len(splits) == 1 else "") or ALL


def _is_karpathy(json_path: Path) -> bool:
    """Whether to read a file as Karpathy's: it lacks the key that every NoCaps file has."""
    return '"annotations"' not in read_text_file(json_path)


def _select_split(images: list[CaptionedImage], split: str | None, dataset: Path) -> list[CaptionedImage]:
    counts = Counter(image.split or ALL for image in images)
    if split is None:
        split = ALL if set(counts) == {ALL} else USUAL_SPLIT
    if split == ALL:
        return images
    require_splits([split], counts, dataset)
    return [image for image in images if image.split == split]


def read_karpathy(
    json_path: Path, images_dir: Path, splits: Collection[str], allow_missing: bool = False
) -> list[CaptionedImage]:
    """Read the images of some splits; missing photos raise DatasetError, or are left out if allowed."""
    return keep_present(parse_karpathy(json_path, images_dir, splits), images_dir, allow_missing)
