"""What a source of training rows is, and what one row says."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple, Protocol

from PIL import Image

from training.data_settings import SourceSettings


class Turn(NamedTuple):
    """What pass 2 is asked, and must say; without a question it is asked for a caption."""

    question: str
    answer: str


class Sample(NamedTuple):
    """What is said of one row.

    captions: everything. target: what matches it. turns: answered one by one from the same summary tokens.
    negatives: what is not true of it. text: what pass 1 reads where there is no picture, else empty.
    picture: the file that shows it, which other rows may show too; None where none can.
    """

    captions: Sequence[str]
    target: str
    turns: Sequence[Turn]
    negatives: Sequence[str] = ()
    text: str = ""
    picture: Path | None = None


class Source(Protocol):
    """Rows that are dealt out, each found by its number alone; DatasetError says why one cannot be used."""

    @property
    def settings(self) -> SourceSettings:
        """What the settings file says of it."""

    @property
    def pictured(self) -> bool:
        """Whether every row is a picture with captions."""

    def __len__(self) -> int:
        """How many rows there are, broken ones too."""

    def read_captions(self, row: int) -> Sequence[str]:
        """Everything that is said of a row."""

    def draw_sample(self, row: int, random: Random) -> Sample:
        """What is said of a row, this time."""

    def load_picture(self, row: int, side: int) -> Image.Image:
        """The RGB picture of a row; one much larger than `side` pixels may be shrunk, unless `side` is 0."""

    def describe_row(self, row: int) -> str:
        """What a person finds the row by."""


def draw_captions(captions: Sequence[str], random: Random) -> Sample:
    """One caption to be matched and one to be said, of several of one picture."""
    target, answer = random.choice(captions), random.choice(captions)
    return Sample(captions, target, [Turn("", answer)])
