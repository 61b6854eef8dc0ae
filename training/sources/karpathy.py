"""Photos with captions in Karpathy's JSON: Flickr8k, Flickr30k, COCO."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.datasets import CaptionedImage, parse_each_karpathy
from encoders.base import DatasetError
from training.data_settings import KarpathySettings
from training.sources.base import Sample, draw_captions
from training.sources.pictures import open_picture, square_picture


class KarpathySource:
    """One row per photo; captions are held in memory, photos only after `hold_pictures`. See Source."""

    pictured = True

    def __init__(self, settings: KarpathySettings, folder: Path) -> None:
        self.settings = settings
        self._images = parse_each_karpathy(
            folder / settings.annotations, folder / settings.images, settings.splits
        )
        self._pixels: dict[int, NDArray[np.uint8]] = {}  # (side, side, 3)

    def hold_pictures(self, side: int) -> None:
        """Decode all photos now, squeezed to `side` x `side` pixels; raises DatasetError if none can be."""
        reason = None
        for row in tqdm(range(len(self)), desc="photos", unit="photo", disable=None):
            try:
                self._pixels[row] = square_picture(self.load_picture(row, side), side)
            except DatasetError as error:  # reported when the row is dealt
                reason = error
        if not self._pixels:
            raise DatasetError(f"No photo in {self.settings.images} can be read, and the last: {reason}.")

    def __len__(self) -> int:
        return len(self._images)

    def read_captions(self, row: int) -> Sequence[str]:
        """See Source."""
        return self._read(row).captions

    def draw_sample(self, row: int, random: Random) -> Sample:
        """See Source."""
        image = self._read(row)
        return draw_captions(image.captions, random)._replace(picture=image.path)

    def load_picture(self, row: int, side: int) -> Image.Image:
        """See Source."""
        if row in self._pixels:
            return Image.fromarray(self._pixels[row])
        return open_picture(self._read(row).path, side)

    def describe_row(self, row: int) -> str:
        """See Source."""
        image = self._images[row]
        return f"record {row}" if isinstance(image, DatasetError) else image.path.name

    def _read(self, row: int) -> CaptionedImage:
        image = self._images[row]
        if isinstance(image, DatasetError):
            raise image
        return image
