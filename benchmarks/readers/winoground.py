"""Winoground: two pictures and two captions of the same words, to be matched; JSON lines (examples.jsonl).

{"image_0", "image_1", "caption_0", "caption_1", "collapsed_tag"}; pictures are named without .png. Source:
Thrush et al., Winoground, 2022 (huggingface.co/datasets/facebook/winoground).
"""

from pathlib import Path

from benchmarks.readers.base import join_below, read_json_lines, require_text
from benchmarks.readers.composition import Composition, Picture
from encoders.base import DatasetError


def parse_winoground(jsonl_path: Path, images_dir: Path) -> list[Composition]:
    """Read all examples; caption i is true of picture i. The kind is the tag (Object, Relation, Both)."""
    compositions = []
    for where, record in read_json_lines(jsonl_path):
        names = [require_text(record, field, where) for field in ("image_0", "image_1")]
        photos = [
            join_below(images_dir, [name if Path(name).suffix else f"{name}.png"], where) for name in names
        ]
        captions = tuple(require_text(record, field, where) for field in ("caption_0", "caption_1"))
        kind = require_text({"collapsed_tag": "example"} | record, "collapsed_tag", where)
        compositions.append(Composition(tuple(map(Picture, photos)), captions, 1, kind))
    if not compositions:
        raise DatasetError(f"{jsonl_path} holds no examples.")
    return compositions
