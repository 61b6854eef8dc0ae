"""NoCaps' published JSON (nocaps_val_4500_captions.json), which is COCO's caption format plus a domain.

{"images": [{"id", "file_name", "domain"}], "annotations": [{"image_id", "caption"}]}: the domains (in-domain,
near-domain, out-domain) are read as splits. COCO's own captions_val2017.json can be read too, and has none.
Source: Agrawal et al., nocaps: novel object captioning at scale, 2019.
"""

from pathlib import Path
from typing import Any

from benchmarks.readers.base import CaptionedImage, clean_captions, join_below, read_json, require_text
from encoders.base import DatasetError


def parse_nocaps(json_path: Path, images_dir: Path) -> list[CaptionedImage]:
    """Read all images with their captions, in the file's order; the domain is the split."""
    data = read_json(json_path)
    where = str(json_path)
    captions: dict[Any, list[str]] = {}
    for annotation in _list_records(data, "annotations", json_path):
        captions.setdefault(annotation.get("image_id"), []).append(require_text(annotation, "caption", where))
    return [
        _parse_image(record, captions.get(record.get("id"), []), images_dir, where)
        for record in _list_records(data, "images", json_path)
    ]


def _parse_image(record: dict[str, Any], captions: list[str], images_dir: Path, where: str) -> CaptionedImage:
    name = require_text(record, "file_name", where)
    domain = record.get("domain", "")
    if not isinstance(domain, str):
        raise DatasetError(f'{where} is of another form: "domain" of {name} should be text.')
    return CaptionedImage(
        join_below(images_dir, [name], where), clean_captions(captions, f"{name} in {where}"), domain
    )


def _list_records(data: Any, key: str, json_path: Path) -> list[dict[str, Any]]:
    records = data.get(key) if isinstance(data, dict) else None
    if not isinstance(records, list) or not all(_is_hashable_record(record) for record in records):
        raise DatasetError(
            f'{json_path} is not in NoCaps\' form: {{"images": [...], "annotations": [...]}} is expected.'
        )
    return records


def _is_hashable_record(record: Any) -> bool:
    """Whether this is an object whose ids are strings, integers or missing."""
    return isinstance(record, dict) and all(
        isinstance(record.get(key), str | int | None) for key in ("id", "image_id")
    )
