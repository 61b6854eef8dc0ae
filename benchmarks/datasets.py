"""Annotation files to captioned images: Karpathy's JSON (Flickr8k, Flickr30k, COCO), JSON lines of captions.

Nothing in an annotation file is trusted: names that lead out of the images' folder are refused, not followed.
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from encoders.base import DatasetError

_NAMES_SHOWN = 3


@dataclass(frozen=True)
class CaptionedImage:
    """One picture and what people wrote about it."""

    path: Path
    captions: tuple[str, ...]
    split: str


def read_karpathy(
    json_path: Path, images_dir: Path, splits: Collection[str], allow_missing: bool = False
) -> list[CaptionedImage]:
    """Read the images of some splits, in the file's order; missing photos raise, or are left out if allowed.

    Splits are named as in the file; the usual COCO training set is {"train", "restval"}.
    """
    return keep_present(parse_karpathy(json_path, images_dir, splits), images_dir, allow_missing)


def parse_karpathy(json_path: Path, images_dir: Path, splits: Collection[str]) -> list[CaptionedImage]:
    """Read what the file says of some splits, whether or not the photos are there."""
    return [_parse_image(record, images_dir, json_path) for record in _select_records(json_path, splits)]


def parse_each_karpathy(
    json_path: Path, images_dir: Path, splits: Collection[str]
) -> list[CaptionedImage | DatasetError]:
    """As `parse_karpathy`, with the reason in the place of a record that cannot be used."""
    images: list[CaptionedImage | DatasetError] = []
    for record in _select_records(json_path, splits):
        try:
            images.append(_parse_image(record, images_dir, json_path))
        except DatasetError as error:
            images.append(error)
    return images


def _select_records(json_path: Path, splits: Collection[str]) -> list[dict[str, Any]]:
    records = _load_records(json_path)
    counts = Counter(_read_text(record, "split", json_path) for record in records)
    unknown = sorted(set(splits) - set(counts))
    if unknown or not splits:
        there = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
        raise DatasetError(
            f"{json_path} has no split {', '.join(unknown) or '(none named)'}: it has {there}."
        )
    return [record for record in records if record["split"] in splits]


def keep_present(
    images: Sequence[CaptionedImage], images_dir: Path, allow_missing: bool
) -> list[CaptionedImage]:
    """The images whose files are there; raises DatasetError where one is not (unless allowed) or none is."""
    present = [image for image in images if image.path.is_file()]
    missing = [image.path.name for image in images if not image.path.is_file()]
    if missing and not (allow_missing and present):
        names = ", ".join(missing[:_NAMES_SHOWN]) + (", ..." if len(missing) > _NAMES_SHOWN else "")
        remedy = "allow missing photos to go on without them" if present else "is this the photos' folder?"
        raise DatasetError(
            f"{len(missing)} of {len(images)} photos are not in {images_dir} ({names}): {remedy}"
        )
    return present


def read_caption_groups(jsonl_path: Path) -> list[tuple[str, ...]]:
    """Read lines of {"captions": [...]}: each group describes one picture that need not be at hand."""
    groups = []
    for number, line in enumerate(_read_file(jsonl_path).splitlines(), start=1):
        where = f"line {number} of {jsonl_path}"
        record = _parse_json(line, where)
        captions = record.get("captions") if isinstance(record, dict) else None
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise DatasetError(f'{where} is not of the form {{"captions": ["...", ...]}}.')
        groups.append(_clean_captions(captions, where))
    return groups


def _load_records(json_path: Path) -> list[dict[str, Any]]:
    data = _parse_json(_read_file(json_path), str(json_path))
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
        join_below(images_dir, parts, str(json_path)), _clean_captions(captions, where), record["split"]
    )


def join_below(images_dir: Path, parts: Sequence[str], where: str) -> Path:
    """The path that names in an annotation file lead to; raises DatasetError where it leaves the folder."""
    for part in parts:
        path = PurePosixPath(part)
        # A backslash or a colon would mean another place on Windows.
        if path.is_absolute() or ".." in path.parts or any(sign in part for sign in "\\:\0"):
            raise DatasetError(f"{where} names {part!r}, which is not a plain path below the images' folder.")
    return images_dir.joinpath(*parts)


def _clean_captions(captions: list[str], where: str) -> tuple[str, ...]:
    cleaned = tuple(caption.strip() for caption in captions if caption.strip())
    if not cleaned:
        raise DatasetError(f"{where} has no caption with words in it.")
    return cleaned


def _read_text(record: dict[str, Any], key: str, json_path: Path) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise DatasetError(
            f'{json_path} is not in Karpathy\'s form: "{key}" should be text and is {type(value).__name__}.'
        )
    return value


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DatasetError(f"There is no annotation file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as an annotation file: {error}.") from error


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(f"{where} is not JSON: {error}.") from error
