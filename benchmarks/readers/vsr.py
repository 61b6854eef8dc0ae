"""VSR: a true or false statement about where things are in a COCO photo; JSON lines (test.jsonl).

{"image", "caption", "label": 0 or 1, "relation"}. Source: Liu et al., Visual Spatial Reasoning, 2023
(github.com/cambridgeltl/visual-spatial-reasoning).
"""

from pathlib import Path

from benchmarks.readers.base import join_below, read_json_lines, require_text
from benchmarks.readers.composition import Composition, Picture
from encoders.base import DatasetError


def parse_vsr(jsonl_path: Path, images_dir: Path) -> list[Composition]:
    """Read all statements; `true` is 1 or 0, and the kind is the relation."""
    compositions = []
    for where, record in read_json_lines(jsonl_path):
        photo = join_below(images_dir, [require_text(record, "image", where)], where)
        label = record.get("label")
        if label not in (0, 1):
            raise DatasetError(f'{where} should have a "label" of 0 or 1 and not {label!r:.100}.')
        caption, kind = (require_text(record, field, where) for field in ("caption", "relation"))
        compositions.append(Composition((Picture(photo),), (caption,), int(label), kind))
    if not compositions:
        raise DatasetError(f"{jsonl_path} holds no statements.")
    return compositions
