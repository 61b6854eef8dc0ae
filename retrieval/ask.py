"""Describes an image, and answers questions about it, from its stored tokens: the file may be gone."""

from collections.abc import Callable
from pathlib import Path

from encoders.base import FloatArray, Talker
from indexer.table import EmbeddingTable

from .find_image import find_image
from .locate import find_index
from .query import clean_question
from .search import load_matching_reader, require_talker


def caption(index_dir: str | Path, image: str | Path | int) -> str:
    """Describe an indexed image, named by path or id. index_dir: the index, or a folder that has one."""
    return _talk(index_dir, image, lambda talker, summaries: talker.caption(summaries))


def ask(index_dir: str | Path, image: str | Path | int, question: str) -> str:
    """Answer a question about an image, named as for `caption`."""
    question = clean_question(question)
    return _talk(index_dir, image, lambda talker, summaries: talker.answer(summaries, question))


def _talk(
    index_dir: str | Path, image: str | Path | int, speak: Callable[[Talker, FloatArray], list[str]]
) -> str:
    table = EmbeddingTable.open(find_index(index_dir))
    summaries = table.read_summaries([find_image(table, image)])  # before the model, which takes seconds
    return speak(require_talker(load_matching_reader(table.manifest)), summaries)[0]
