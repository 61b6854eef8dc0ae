"""Cleans what a user typed, before it is encoded."""

from collections.abc import Sequence

from encoders.base import QueryError


def clean_query(words: str | Sequence[str]) -> str:
    """Join the words of a query with single spaces; QueryError if there are none."""
    cleaned = _clean_text(words if isinstance(words, str) else " ".join(words))
    if not cleaned:
        raise QueryError(
            "the query has no words: say what the image shows, such as `fwd2bot search a red car`"
        )
    return cleaned


def clean_question(text: str) -> str:
    """Join the words of a question with single spaces; QueryError if there are none."""
    cleaned = _clean_text(text)
    if not cleaned:
        raise QueryError(
            "the question has no words: ask one in quotes, or describe the image with `fwd2bot caption`"
        )
    return cleaned


def _clean_text(text: str) -> str:
    text = text.encode("utf-8", "ignore").decode("utf-8")  # a shell may pass bytes that are not UTF-8
    return " ".join(text.split())
