"""WebDataset shards: .tar files of KEY.jpg beside KEY.txt or KEY.json, as img2dataset writes them (CC3M).

The positions of each picture and its caption are indexed once, from the tar headers; members are read in
place.
"""

import json
import logging
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from encoders.base import DatasetError
from training.data_settings import ShardSettings
from training.sources.base import Sample, draw_captions
from training.sources.pictures import open_picture

_PICTURES = ("jpg", "jpeg", "png", "webp")
_CAPTIONS = ("txt", "json")  # in order of preference
_LARGEST_PICTURE, _LARGEST_CAPTION = 64 * 2**20, 2**20  # bytes
_log = logging.getLogger(__name__)


class ShardSource:
    """One row per picture with its caption; the index takes 48 bytes per row. See Source."""

    pictured = True

    def __init__(self, settings: ShardSettings, folder: Path) -> None:
        self.settings = settings
        pattern = folder / settings.shards
        self._shards = sorted(pattern.parent.glob(pattern.name))
        if not self._shards:
            raise DatasetError(f"There are no shards {pattern}.")
        places = [
            np.array([(number, *place) for place in _index_shard(shard)], np.int64).reshape(-1, 6)
            for number, shard in enumerate(tqdm(self._shards, desc="shards", unit="shard", disable=None))
        ]
        # Columns: shard; start and size of the picture; start and size of the caption; whether that is JSON.
        self._rows = np.concatenate(places)
        if not len(self._rows):
            raise DatasetError(
                f"No shard of {pattern} holds a picture beside its caption (KEY.jpg, KEY.txt)."
            )

    def __len__(self) -> int:
        return len(self._rows)

    def read_captions(self, row: int) -> Sequence[str]:
        """See Source."""
        shard, _, _, start, size, is_json = self._rows[row].tolist()
        return [_read_caption(self._read(shard, start, size, _LARGEST_CAPTION), bool(is_json))]

    def draw_sample(self, row: int, random: Random) -> Sample:
        """See Source."""
        return draw_captions(self.read_captions(row), random)

    def load_picture(self, row: int, side: int) -> Image.Image:
        """See Source."""
        shard, start, size, *_ = self._rows[row].tolist()
        return open_picture(BytesIO(self._read(shard, start, size, _LARGEST_PICTURE)), side)

    def describe_row(self, row: int) -> str:
        """See Source."""
        shard, start, *_ = self._rows[row].tolist()
        return f"the picture at byte {start} of {self._shards[shard].name}"

    def _read(self, shard: int, start: int, size: int, limit: int) -> bytes:
        if size > limit:
            raise DatasetError(f"a member of {size} bytes is over the limit of {limit}")
        try:
            with self._shards[shard].open("rb") as file:
                file.seek(start)
                return file.read(size)
        except OSError as error:
            raise DatasetError(f"its shard cannot be read: {error}") from error


class _Member(NamedTuple):
    key: str
    kind: str
    start: int
    size: int


def _index_shard(shard: Path) -> Iterator[tuple[int, int, int, int, int]]:
    """Picture and caption of each key, whose members must be adjacent; stops at the first broken header."""
    try:
        with tarfile.open(shard, "r:") as archive:
            for _, members in groupby(_list_members(archive), key=lambda member: member.key):
                yield from _pair_members(members)
    except (OSError, tarfile.TarError) as error:
        _log.warning("%s: the rest of this shard is passed over: %s", shard, error)


def _list_members(archive: tarfile.TarFile) -> Iterator[_Member]:
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # else it keeps every header
        folder, slash, name = member.name.rpartition("/")
        stem, _, kind = name.partition(".")
        if member.isreg() and not member.issparse():  # not a link or device, and stored contiguously
            yield _Member(folder + slash + stem, kind.lower(), member.offset_data, member.size)


def _pair_members(members: Iterable[_Member]) -> Iterator[tuple[int, int, int, int, int]]:
    found = {member.kind: member for member in members}
    picture = next((found[kind] for kind in _PICTURES if kind in found), None)
    caption = next((found[kind] for kind in _CAPTIONS if kind in found), None)
    if picture and caption:
        yield picture.start, picture.size, caption.start, caption.size, caption.kind == "json"


def _read_caption(text: bytes, is_json: bool) -> str:
    try:
        caption = json.loads(text).get("caption") if is_json else text.decode()
    except (ValueError, AttributeError, RecursionError) as error:
        raise DatasetError(f"its caption cannot be read: {error}") from error
    if not isinstance(caption, str) or not caption.strip():
        raise DatasetError("it has no caption with words in it")
    return caption.strip()
