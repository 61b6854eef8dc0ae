"""SugarCrepe: COCO photos (val2017), each with a caption and a fluent false one, in seven JSON files.

add_att.json and the others: {"0": {"filename", "caption", "negative_caption"}, ...}. Source: Hsieh et al.,
SugarCrepe, 2023 (github.com/RAIVNLab/sugar-crepe). SugarCrepe++ adds a paraphrase of the true caption,
"caption2", in five files, each a list. Source: Dumpala et al., SUGARCREPE++, 2024
(github.com/Sri-Harsha/scpp).
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.readers.base import join_below, require_text
from benchmarks.readers.composition import Composition, Picture, find_files, read_records

FILES = (
    "add_att.json",
    "add_obj.json",
    "replace_att.json",
    "replace_obj.json",
    "replace_rel.json",
    "swap_att.json",
    "swap_obj.json",
)
FILES_PP = tuple(name for name in FILES if not name.startswith("add"))


def parse_sugarcrepe(place: Path, images_dir: Path) -> list[Composition]:
    """Read the seven files of a folder, or one file; the kind is the file's name."""
    return _parse_files(find_files(place, FILES), images_dir, ["caption"])


def parse_sugarcrepe_pp(place: Path, images_dir: Path) -> list[Composition]:
    """Read the five files of SugarCrepe++, or one file: two true captions and a false one each."""
    return _parse_files(find_files(place, FILES_PP), images_dir, ["caption", "caption2"])


def _parse_files(paths: Sequence[Path], images_dir: Path, true_fields: Sequence[str]) -> list[Composition]:
    compositions = []
    for path in paths:
        for where, record in read_records(path):
            photo = join_below(images_dir, [require_text(record, "filename", where)], where)
            fields = [*true_fields, "negative_caption"]
            captions = tuple(require_text(record, field, where).strip() for field in fields)
            compositions.append(Composition((Picture(photo),), captions, len(true_fields), path.stem))
    return compositions
