"""Read a published compositionality set: the one place that chooses the reader by the set's form.

Each form has its reader in benchmarks/readers/ and, under the same name, its rule in `benchmarks.judging`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.embedding import decode_picture
from benchmarks.readers.aro import parse_aro
from benchmarks.readers.base import find_missing
from benchmarks.readers.composition import Composition, Picture
from benchmarks.readers.sugarcrepe import parse_sugarcrepe, parse_sugarcrepe_pp
from benchmarks.readers.vsr import parse_vsr
from benchmarks.readers.winoground import parse_winoground
from encoders.base import DatasetError

_NO_SHRINKING = 1 << 30  # pixels


# Each takes the set's file or folder, and the folder of its photos.
PARSERS: Mapping[str, Callable[[Path, Path], list[Composition]]] = {
    "sugarcrepe": parse_sugarcrepe,
    "sugarcrepe++": parse_sugarcrepe_pp,
    "winoground": parse_winoground,
    "aro": parse_aro,
    "vsr": parse_vsr,
}


@dataclass(frozen=True)
class CompositionRecord:
    """The set that a result is about; compositions with one of the `missing` photos were left out."""

    dataset: str
    form: str
    compositions: int
    pictures: int
    missing: int


def read_compositions(
    form: str, dataset: Path, images_dir: Path, allow_missing: bool
) -> tuple[list[Composition], CompositionRecord]:
    """Read a set of this form and its record; compositions with missing photos are left out if allowed."""
    parsed = PARSERS[form](dataset, images_dir)
    missing = find_missing(
        [picture.path for each in parsed for picture in each.pictures], images_dir, allow_missing
    )
    kept = [each for each in parsed if not missing & {picture.path for picture in each.pictures}]
    if not kept:
        raise DatasetError(f"None of {len(parsed)} compositions in {dataset} has all its photos: add some.")
    pictures = len({picture for each in kept for picture in each.pictures})
    return kept, CompositionRecord(dataset.name, form, len(kept), pictures, len(missing))


def load_picture(picture: Picture, image_size: int) -> Image.Image:
    """Decode a picture as the index does; if it has a box, crop that from the picture at full size."""
    if picture.box is None:
        return decode_picture(picture.path, image_size)
    return _crop(decode_picture(picture.path, _NO_SHRINKING), picture)


def _crop(whole: Image.Image, picture: Picture) -> Image.Image:
    assert picture.box is not None
    left, top, right, bottom = picture.box
    left, top, right, bottom = max(0, left), max(0, top), min(whole.width, right), min(whole.height, bottom)
    if left >= right or top >= bottom:
        raise DatasetError(f"{picture.path} has {whole.size} pixels, and none in the box {picture.box}.")
    return whole.crop((left, top, right, bottom))
