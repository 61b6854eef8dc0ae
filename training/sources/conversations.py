"""Instructions in LLaVA's JSON: {id, image?, conversations: [{from: human | gpt, value}, ...]}.

Every turn of a conversation is a separate question, answered from the same summary tokens: earlier turns are
not repeated. If there is no image, pass 1 reads the first question.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from encoders.base import DatasetError
from encoders.fwd2bot.prompts import IMAGE_PLACEHOLDER
from training.data_settings import ConversationSettings
from training.sources.base import Sample, Turn
from training.sources.pictures import locate_picture, open_picture
from training.sources.records import RecordFile


class ConversationSource:
    """One row per conversation; records and pictures are read on demand. See Source."""

    pictured = False  # some rows are text only

    def __init__(self, settings: ConversationSettings, folder: Path) -> None:
        self.settings = settings
        self._images = folder / settings.images
        self._records = RecordFile(folder / settings.annotations)

    def __len__(self) -> int:
        return len(self._records)

    def read_captions(self, row: int) -> Sequence[str]:
        """See Source."""
        turns = read_turns(self._records.read(row))
        return [text for turn in turns for text in turn if text]

    def draw_sample(self, row: int, random: Random) -> Sample:
        """See Source; `random` is not used."""
        record = self._records.read(row)
        turns = read_turns(record)
        sample = Sample([turn.answer for turn in turns], turns[0].answer, turns)
        if record.get("image") is not None:  # a table exported to JSON has null where there is none
            return sample._replace(picture=locate_picture(self._images, record, "image"))
        if not turns[0].question:
            raise DatasetError("its conversation has neither an image nor a first question")
        return sample._replace(text=turns[0].question)

    def load_picture(self, row: int, side: int) -> Image.Image:
        """See Source."""
        return open_picture(locate_picture(self._images, self._records.read(row), "image"), side)

    def describe_row(self, row: int) -> str:
        """See Source."""
        try:
            return f"record {row} (id {self._records.read(row).get('id')!r:.100})"
        except DatasetError:
            return f"record {row}"


def read_turns(record: dict[str, Any]) -> list[Turn]:
    """Read a record's questions and answers; raises DatasetError if it is not in the format above."""
    messages = record.get("conversations")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise DatasetError('it has no list of "conversations"')
    if messages and messages[0].get("from") == "gpt":
        messages = messages[1:]  # an answer without a question
    speakers = [message.get("from") for message in messages]
    if not messages or speakers != ["human", "gpt"] * (len(messages) // 2):
        raise DatasetError(f"in its conversation human and gpt do not speak in turn: {speakers!r:.100}")
    said = [_read_value(message) for message in messages]
    return [Turn(question, answer) for question, answer in zip(said[::2], said[1::2], strict=True)]


def _read_value(message: dict[str, Any]) -> str:
    value = message.get("value")
    if not isinstance(value, str):
        raise DatasetError(f'the "value" of a turn should be text and is {type(value).__name__}')
    if message["from"] == "gpt":
        if not value.strip():
            raise DatasetError("an answer in its conversation is empty")
        return value.strip()
    if value.count(IMAGE_PLACEHOLDER) > 1:
        raise DatasetError(f"it shows several images in one turn, and there is place for one: {value!r:.100}")
    return value.replace(IMAGE_PLACEHOLDER, "").strip()
