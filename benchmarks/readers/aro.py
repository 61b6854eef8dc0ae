"""ARO: captions whose relations, attributes or word order are wrong.

visual_genome_relation.json and visual_genome_attribution.json are lists of {"image_path", "true_caption",
"false_caption", "bbox_x", "bbox_y", "bbox_w", "bbox_h"} and, in the former, "relation_name"; the picture is
what the box cuts out. COCO-Order and Flickr30k-Order are made, not published: the authors' code draws their
false captions at random, with a tagger, as records {"image", "caption_options": [true, false, ...]}; a list
of these is read. Source: Yuksekgonul et al., When and why vision-language models behave like bags-of-words,
2023 (github.com/mertyg/vision-language-models-are-bows).
"""

from pathlib import Path
from typing import Any

from benchmarks.readers.base import join_below, require_text
from benchmarks.readers.composition import Box, Composition, Picture, find_files, read_records
from encoders.base import DatasetError

FILES = ("visual_genome_relation.json", "visual_genome_attribution.json")


def parse_aro(place: Path, images_dir: Path) -> list[Composition]:
    """Read both Visual Genome files of a folder, or one file of any of the four.

    The kind is the relation where one is named, else the file.
    """
    return [
        _parse_record(record, where, path.stem, images_dir)
        for path in find_files(place, FILES)
        for where, record in read_records(path)
    ]


def _parse_record(record: dict[str, Any], where: str, stem: str, images_dir: Path) -> Composition:
    field = "image_path" if "image_path" in record else "image"
    photo = join_below(images_dir, [require_text(record, field, where)], where)
    captions = _read_captions(record, where)
    kind = require_text({"relation_name": stem} | record, "relation_name", where)
    return Composition((Picture(photo, _read_box(record, where)),), captions, 1, kind)


def _read_captions(record: dict[str, Any], where: str) -> tuple[str, ...]:
    if "caption_options" not in record and isinstance(record.get("caption"), list):
        raise DatasetError(
            f"{where} has captions and no false ones, which ARO's own code draws when it runs: write them "
            'out as "caption_options", the true caption first.'
        )
    options = record.get("caption_options")
    if options is None:
        return tuple(require_text(record, field, where) for field in ("true_caption", "false_caption"))
    if not isinstance(options, list) or len(options) < 2:
        raise DatasetError(f'{where} should have a true caption and then false ones in "caption_options".')
    return tuple(require_text({"caption_options": each}, "caption_options", where) for each in options)


def _read_box(record: dict[str, Any], where: str) -> Box | None:
    if "bbox_x" not in record:
        return None
    values = [record.get(f"bbox_{side}") for side in "xywh"]
    if not all(isinstance(value, int | float) and abs(value) < 1e9 for value in values):
        raise DatasetError(
            f"{where} should have four numbers bbox_x, bbox_y, bbox_w, bbox_h: {values!r:.100}."
        )
    left, top, width, height = (int(value) for value in values if value is not None)
    return left, top, left + width, top + height
