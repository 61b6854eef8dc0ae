"""Karpathy's JSON, in which the splits of Flickr8k, Flickr30k and COCO are published.

{"images": [{"filename", "split", "sentences": [{"raw"}], "filepath" (only COCO)}]}. Source: Karpathy and Li,
Deep visual-semantic alignments for generating image descriptions, 2015.
"""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from benchmarks.readers.base import CaptionedImage, clean_captions, join_below, read_json
from encoders.base import DatasetError


def parse_karpathy(json_path: Path, images_dir: Path, splits: Collection[str] | None) -> list[CaptionedImage]:
    """Read the images of some splits (None: all), in file order, whether or not the photos exist.

    Splits are named as in the file; the usual COCO training set is {"train", "restval"}.
    """
    return [_parse_image(record, images_dir, json_path) for record in _select_records(json_path, splits)]


def parse_each_karpathy(
    json_path: Path, images_dir: Path, splits: Collection[str]
) -> list[CaptionedImage | DatasetError]:
    """As `parse_karpathy`, but with a DatasetError in the place of each record that cannot be used."""
    images: list[CaptionedImage | DatasetError] = []
    for record in _select_records(json_path, splits):
        try:
            images.append(_parse_image(record, images_dir, json_path))
        except DatasetError as error:
            images.append(error)
    return images


def _select_records(json_path: Path, splits: Collection[str] | None) -> list[dict[str, Any]]:
    records = _load_records(json_path)
    counts = Counter(_read_text(record, "split", json_path) for record in records)
    if splits is None:
        return records
    require_splits(splits, counts, json_path)
    return [record for record in records if record["split"] in splits]


def require_splits(splits: Collection[str], counts: Counter[str], path: Path) -> None:
    """Raise DatasetError, naming the splits that exist, unless all these splits do."""
    unknown = sorted(set(splits) - set(counts))
    if unknown or not splits:
        there = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
        raise DatasetError(f"{path} has no split {', '.join(unknown) or '(none named)'}: it has {there}.")


def _load_records(json_path: Path) -> list[dict[str, Any]]:
    data = read_json(json_path)
    records = data.get("images") if isinstance(data, dict) else None
    if (
        not isinstance(records, list)
        or not all(isinstance(record, dict) for record in records)
        or not records
    ):
        raise DatasetError(
            f'{json_path} is not in Karpathy\'s form: {{"images": [{{...}}, ...]}} is expected.'
        )
    return records


def _parse_image(record: dict[str, Any], images_dir: Path, json_path: Path) -> CaptionedImage:
    name = _read_text(record, "filename", json_path)
    parts = [_read_text(record, "filepath", json_path), name] if record.get("filepath") else [name]
    sentences = record.get("sentences")
    where = f"{name} in {json_path}"
    if not isinstance(sentences, list) or not all(isinstance(sentence, dict) for sentence in sentences):
        raise DatasetError(f'{where} has no list of "sentences", as Karpathy\'s form wants.')
    captions = [_read_text(sentence, "raw", json_path) for sentence in sentences]
    return CaptionedImage(
        join_below(images_dir, parts, str(json_path)), clean_captions(captions, where), record["split"]
    )


def _read_text(record: dict[str, Any], key: str, json_path: Path) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise DatasetError(
            f'{json_path} is not in Karpathy\'s form: "{key}" should be text and is {type(value).__name__}.'
        )
    return value
