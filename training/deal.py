"""The order in which the rows of a source are dealt: endless, with a new permutation in every epoch.

The row at a position depends on seed, source and position alone. A broken row is replaced by the row at the
same place in the next step's batch: no other position changes, whichever process reads it.
"""

import logging
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from encoders.base import DatasetError
from training.sources.base import Sample, Source

_ATTEMPTS = 100
_log = logging.getLogger(__name__)


class DealtRow(NamedTuple):
    """The row dealt to a position of a batch, and an iterator over its replacements should it be broken."""

    row: int
    sample: Sample
    others: Iterator[tuple[int, Sample]]


class Deal:
    """Deals the rows of one source; each broken row is reported once."""

    def __init__(self, name: str, source: Source, seed: int) -> None:
        self.name, self.source, self.seed = name, source, seed
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._told = torch.zeros(len(source), dtype=torch.bool).share_memory_()  # shared by the workers
        self._reason = ""  # why the last skipped row was skipped

    def row_at(self, position: int) -> int:
        """The row number at a position of the endless deal."""
        epoch, place = divmod(position, len(self.source))
        if epoch not in self._orders:
            if len(self._orders) > 1:
                del self._orders[min(self._orders)]
            key = int.from_bytes(Random(f"{self.seed} {self.name} {epoch}").randbytes(8), "big")
            self._orders[epoch] = np.random.default_rng(key).permutation(len(self.source))
        return int(self._orders[epoch][place])

    def deal_rows(self, start: int, count: int, random: Random) -> list[DealtRow]:
        """The rows at positions start to start + count (exclusive), each with a freshly drawn sample."""
        dealt = []
        for position in range(start, start + count):
            candidates = self._find_candidates(position, count, random)
            dealt.append(DealtRow(*next(candidates), candidates))
        return dealt

    def load_picture(self, dealt: DealtRow, side: int) -> tuple[DealtRow, Image.Image]:
        """The picture of a dealt row, or of its first replacement with a readable picture."""
        while True:
            try:
                return dealt, self.source.load_picture(dealt.row, side)
            except DatasetError as error:
                self._pass_over(dealt.row, error)
            pictured = (pair for pair in dealt.others if not pair[1].text)
            dealt = DealtRow(*next(pictured), dealt.others)

    def _find_candidates(self, position: int, count: int, random: Random) -> Iterator[tuple[int, Sample]]:
        for attempt in range(_ATTEMPTS):
            row = self.row_at(position + attempt * count)
            try:
                yield row, self.source.draw_sample(row, random)
            except DatasetError as error:
                self._pass_over(row, error)
            # A replacement must not advance the generator that later rows draw from.
            random = Random(f"{self.seed} {self.name} {position} {attempt}")
        raise DatasetError(
            f"{_ATTEMPTS} rows of source {self.name} one after the other cannot be used, as {self._reason}: "
            "is this the right file, and the pictures' folder?"
        )

    def _pass_over(self, row: int, error: DatasetError) -> None:
        self._reason = f"{self.source.describe_row(row)}: {error}"
        if not self._told[row]:
            self._told[row] = True
            _log.warning("source %s passes over %s", self.name, self._reason)
