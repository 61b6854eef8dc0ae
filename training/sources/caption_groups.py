"""Groups of captions, each about one picture that is not available: they train the text side."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

from PIL import Image

from encoders.base import DatasetError
from training.data_settings import CaptionGroupSettings
from training.sources.base import Sample, Turn
from training.sources.records import RecordFile


class CaptionGroupSource:
    """One row per line of {"captions": [...]}, at least two of them non-blank. See Source."""

    pictured = False

    def __init__(self, settings: CaptionGroupSettings, folder: Path) -> None:
        self.settings = settings
        self._lines = RecordFile(folder / settings.captions)

    def __len__(self) -> int:
        return len(self._lines)

    def read_captions(self, row: int) -> Sequence[str]:
        """See Source."""
        captions = self._lines.read(row).get("captions")
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise DatasetError('its line is not of the form {"captions": ["...", ...]}')
        return [caption.strip() for caption in captions if caption.strip()]

    def draw_sample(self, row: int, random: Random) -> Sample:
        """See Source; pass 1 reads one caption, and another is its target and its answer."""
        captions = self.read_captions(row)
        if len(captions) < 2:
            raise DatasetError("it has fewer than two captions with words in them")
        text, other = random.sample(captions, 2)
        return Sample([text, other], other, [Turn("", other)], text=text)

    def load_picture(self, row: int, side: int) -> Image.Image:
        """See Source."""
        raise DatasetError("a group of captions has no picture")

    def describe_row(self, row: int) -> str:
        """See Source."""
        return f"line {row + 1} of {self.settings.captions}, blank ones not counted"
