"""Captions and answers that an encoder generates, from summary tokens in each stored form and from pixels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.embedding import decode_pictures
from encoders.base import CannotAnswer, Encoder, FloatArray, SeeingEncoder, can_talk
from indexer.quantize import dequantize_summaries, quantize_summaries

# Summary tokens as the encoder gives them (float32), and rounded as an index stores them.
TOKEN_FORMS = ("float32", "float16", "int8")
# The image itself, uncompressed.
PIXELS = "pixels"
FORMS = (*TOKEN_FORMS, PIXELS)

_PICTURES_AT_ONCE = 32
_ANSWERS_AT_ONCE = 64

Answers = dict[str, list[str]]
Shown = FloatArray | list[Image.Image]


def choose_forms(encoder: Encoder, wanted: Sequence[str] | None) -> list[str]:
    """The wanted forms, or all that the encoder supports; raises CannotAnswer if it does not support one."""
    able = [*TOKEN_FORMS] if can_talk(encoder) and encoder.summary_shape else []
    able += [PIXELS] if isinstance(encoder, SeeingEncoder) else []
    if not able or not set(wanted or able) <= set(able):
        raise CannotAnswer(
            f"{encoder.name} cannot talk about an image from {' or '.join(wanted or FORMS)}: "
            f"it can from {', '.join(able) or 'nothing'}."
        )
    return [form for form in able if form in (wanted or able)]


def store_summaries(summaries: FloatArray, form: str) -> FloatArray:
    """Round summary tokens (n, k, width) to one of TOKEN_FORMS and back to float32."""
    if form == "int8":
        return dequantize_summaries(*quantize_summaries(summaries))
    return summaries.astype(form).astype(np.float32)


def caption_pictures(encoder: Encoder, paths: Sequence[Path], forms: Sequence[str]) -> Answers:
    """A caption of each picture, by form, with the model's own prompt."""
    return _talk(encoder, paths, None, forms)


def answer_about_pictures(
    encoder: Encoder, paths: Sequence[Path], asked: Sequence[Sequence[str]], forms: Sequence[str]
) -> Answers:
    """Answers to all questions asked[i] about paths[i], in that order, by form."""
    return _talk(encoder, paths, asked, forms)


def _talk(
    encoder: Encoder, paths: Sequence[Path], asked: Sequence[Sequence[str]] | None, forms: Sequence[str]
) -> Answers:
    """Read each picture once, holding one batch in memory; asked: None for captions."""
    said: Answers = {form: [] for form in forms}
    with tqdm(total=len(paths), unit="image", desc="answers", disable=None) as progress:
        for start in range(0, len(paths), _PICTURES_AT_ONCE):
            batch = slice(start, start + _PICTURES_AT_ONCE)
            pictures = list(decode_pictures(paths[batch], encoder.image_size))
            each = None if asked is None else asked[batch]
            for form, shown in _show(encoder, pictures, forms).items():
                said[form] += _say_all(encoder, shown, each)
            progress.update(len(pictures))
    return said


def _show(encoder: Encoder, pictures: list[Image.Image], forms: Sequence[str]) -> dict[str, Shown]:
    shown: dict[str, Shown] = {}
    if set(forms) & set(TOKEN_FORMS):
        summaries = encoder.encode_images(pictures).summaries
        assert summaries is not None  # checked by `choose_forms`
        shown |= {form: store_summaries(summaries, form) for form in TOKEN_FORMS if form in forms}
    return shown | ({PIXELS: pictures} if PIXELS in forms else {})


def _say_all(encoder: Encoder, shown: Shown, asked: Sequence[Sequence[str]] | None) -> list[str]:
    """Generate texts about a batch of pictures, in pieces that the encoder can process at once."""
    rows = [row for row, each in enumerate(asked or [[""]] * len(shown)) for _ in each]
    questions = None if asked is None else [question for each in asked for question in each]
    size = encoder.batch_size if isinstance(shown, list) else _ANSWERS_AT_ONCE
    said = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        piece = [shown[row] for row in part] if isinstance(shown, list) else shown[part]
        said += _say(encoder, piece, questions and questions[start : start + size])
    return said


def _say(encoder: Encoder, shown: Shown, questions: Sequence[str] | None) -> list[str]:
    if isinstance(shown, list):
        assert isinstance(encoder, SeeingEncoder)
        return encoder.caption_images(shown) if questions is None else encoder.answer_images(shown, questions)
    assert can_talk(encoder)
    return encoder.caption(shown) if questions is None else encoder.answer(shown, questions)
