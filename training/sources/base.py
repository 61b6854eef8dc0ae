"""The interface of a source of training rows, and the texts of one row."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple, Protocol

from PIL import Image

from training.data_settings import SourceSettings


class Turn(NamedTuple):
    """A question to pass 2 and the answer to learn; an empty question asks for a caption."""

    question: str
    answer: str


class Sample(NamedTuple):
    """The texts of one row, as drawn for one step.

    captions: all texts about it. target: the text to match with it. turns: each answered on its own from the
    same summary tokens. negatives: false texts, used as hard negatives. text: what pass 1 reads if there is
    no picture, else "". picture: the row's image file, which other rows may share; None if it has none.
    """

    captions: Sequence[str]
    target: str
    turns: Sequence[Turn]
    negatives: Sequence[str] = ()
    text: str = ""
    picture: Path | None = None


class Source(Protocol):
    """Rows addressed by number, to be dealt; methods raise DatasetError if a row cannot be used."""

    @property
    def settings(self) -> SourceSettings:
        """The source's settings."""

    @property
    def pictured(self) -> bool:
        """Whether every row is a picture with captions."""

    def __len__(self) -> int:
        """How many rows there are, including broken ones."""

    def read_captions(self, row: int) -> Sequence[str]:
        """All texts of a row."""

    def draw_sample(self, row: int, random: Random) -> Sample:
        """Draw the texts of a row to use this time."""

    def load_picture(self, row: int, side: int) -> Image.Image:
        """The RGB picture of a row; one much larger than `side` pixels may be shrunk, unless `side` is 0."""

    def describe_row(self, row: int) -> str:
        """A human-readable name, for finding the row in the data."""


def draw_captions(captions: Sequence[str], random: Random) -> Sample:
    """Draw, from one picture's captions, one to match and one to generate."""
    target, answer = random.choice(captions), random.choice(captions)
    return Sample(captions, target, [Turn("", answer)])
