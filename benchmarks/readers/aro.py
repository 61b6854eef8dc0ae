"""ARO: captions whose relations, attributes or word order are wrong.

visual_genome_relation.json and visual_genome_attribution.json are lists of {"image_path", "true_caption",
"false_caption", "bbox_x", "bbox_y", "bbox_w", "bbox_h"} and, in the former, "relation_name"; the picture is
the crop of that box. COCO-Order and Flickr30k-Order are generated, not published: the authors' code draws
their false captions at random, with a tagger, as records {"image", "caption_options": [true, false, ...]};
this reads a list of such records. A drawn caption can equal the true one, and then no score tells them apart.
Source: Yuksekgonul et al., When and why vision-language models behave like bags-of-words,
2023 (github.com/mertyg/vision-language-models-are-bows).
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.readers.base import join_below, require_text
from benchmarks.readers.composition import Box, Composition, Picture, find_files, read_records
from encoders.base import DatasetError

FILES = ("visual_genome_relation.json", "visual_genome_attribution.json")
_LEAST_OF_PAIR = 25  # the authors' code reports a pair of attributes if it has this many records or more


def parse_aro(place: Path, images_dir: Path) -> list[Composition]:
    """Read both Visual Genome files of a folder, or one file of any of the four.

    The kind is the relation if one is named; else the first two attributes if there are two ("" if the file
    has fewer than 25 records of that pair); else the file's name. Records whose captions are all equal are
    left out.
    """
    return [each for path in find_files(place, FILES) for each in _parse_file(path, images_dir)]


def _parse_file(path: Path, images_dir: Path) -> list[Composition]:
    records = read_records(path)
    pairs = Counter(_join_attributes(record) for _, record in records)
    parsed = [
        Composition(
            (_read_picture(record, where, images_dir),),
            tuple(_read_captions(record, where)),
            1,
            _find_kind(record, where, path.stem, pairs),
        )
        for where, record in records
    ]
    kept = [each for each in parsed if len(each.captions) > 1]
    if not kept:
        raise DatasetError(f"{path} has no false caption that differs from the true one: draw them again.")
    if len(kept) < len(parsed):
        left = len(parsed) - len(kept)
        print(
            f"{path}: {left:,} of {len(parsed):,} left out, whose captions are all the same", file=sys.stderr
        )
    return kept


def _find_kind(record: dict[str, Any], where: str, stem: str, pairs: Counter[str]) -> str:
    if "relation_name" in record:
        return require_text(record, "relation_name", where)
    pair = _join_attributes(record)
    return (pair if pairs[pair] >= _LEAST_OF_PAIR else "") if pair else stem


def _join_attributes(record: dict[str, Any]) -> str:
    """The first two attributes, joined as in the authors' code; "" if there are fewer than two."""
    names = record.get("attributes")
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        return ""
    return "_".join(names[:2])


def _read_picture(record: dict[str, Any], where: str, images_dir: Path) -> Picture:
    field = "image_path" if "image_path" in record else "image"
    photo = join_below(images_dir, [require_text(record, field, where)], where)
    return Picture(photo, _read_box(record, where))


def _read_captions(record: dict[str, Any], where: str) -> Iterator[str]:
    """The true caption, and the false ones that differ from it."""
    true, *false = _list_options(record, where)
    yield true
    yield from (caption for caption in false if caption != true)


def _list_options(record: dict[str, Any], where: str) -> list[str]:
    if "caption_options" not in record and isinstance(record.get("caption"), list):
        raise DatasetError(
            f"{where} has captions and no false ones, which ARO's own code draws when it runs: write them "
            'out as "caption_options", the true caption first.'
        )
    options = record.get("caption_options")
    if options is None:
        return [require_text(record, field, where) for field in ("true_caption", "false_caption")]
    if not isinstance(options, list) or len(options) < 2:
        raise DatasetError(f'{where} should have a true caption and then false ones in "caption_options".')
    return [require_text({"caption_options": each}, "caption_options", where) for each in options]


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
