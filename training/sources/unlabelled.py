"""Pictures without captions: the image files below a folder, of the formats that are common in data sets."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

from PIL import Image

from encoders.base import DatasetError
from training.data_settings import UnlabelledSettings
from training.sources.base import Sample
from training.sources.pictures import open_picture

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


class UnlabelledSource:
    """One row per file, in order of their paths. See Source."""

    pictured = False  # rows have no captions, which tower-only batches learn from

    def __init__(self, settings: UnlabelledSettings, folder: Path) -> None:
        self.settings = settings
        self._folder = folder / settings.images
        self._files = sorted(path for path in self._folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not self._files:
            raise DatasetError(f"{self._folder} holds no pictures: name a folder that does")

    def __len__(self) -> int:
        return len(self._files)

    def read_captions(self, row: int) -> Sequence[str]:
        """See Source."""
        return []

    def draw_sample(self, row: int, random: Random) -> Sample:
        """See Source."""
        return Sample([], "", [], picture=self._files[row])

    def load_picture(self, row: int, side: int) -> Image.Image:
        """See Source."""
        return open_picture(self._files[row], side)

    def describe_row(self, row: int) -> str:
        """See Source."""
        return str(self._files[row].relative_to(self._folder))
