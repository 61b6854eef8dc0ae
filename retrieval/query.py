"""What a person typed, made fit for the encoder."""

from collections.abc import Sequence

from encoders.base import QueryError


def clean_query(words: str | Sequence[str]) -> str:
    """Join the words of a query with single spaces; QueryError where there are none."""
    joined = words if isinstance(words, str) else " ".join(words)
    text = joined.encode("utf-8", "ignore").decode("utf-8")  # a shell may pass bytes that are no text
    cleaned = " ".join(text.split())
    if not cleaned:
        raise QueryError(
            "the query has no words: say what the image shows, such as `fwd2bot search a red car`"
        )
    return cleaned
