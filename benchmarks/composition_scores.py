"""Score how well captions fit pictures: by embedding, and by likelihood given stored tokens."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.embedding import embed_images, embed_texts, match_texts
from benchmarks.judging import Scores
from benchmarks.readers.composition import Composition, Picture
from encoders.base import Encoder, FloatArray, can_talk
from indexer.quantize import dequantize_summaries, quantize_summaries


@dataclass(frozen=True)
class StoredTokens:
    """Summary tokens as an index stores them: int8 (n, k, width) and a scale for each token (n, k)."""

    levels: NDArray[np.int8]
    scales: FloatArray

    def __getitem__(self, rows: NDArray[np.int64]) -> FloatArray:
        return dequantize_summaries(self.levels[rows], self.scales[rows])


class EmbeddedPictures(NamedTuple):
    """An encoder's output for pictures: vectors (n, dim), and tokens if it keeps them."""

    vectors: FloatArray
    tokens: StoredTokens | None


def embed_pictures(encoder: Encoder, pictures: Iterable[Image.Image], count: int) -> EmbeddedPictures:
    """Embed `count` pictures, keeping tokens only as int8."""
    vectors, tokens = [], []
    for batch in embed_images(encoder, pictures, count):
        vectors.append(batch.vectors)
        if batch.summaries is not None:
            tokens.append(quantize_summaries(batch.summaries))
    stored = StoredTokens(*map(np.concatenate, zip(*tokens, strict=True))) if tokens else None
    return EmbeddedPictures(np.concatenate(vectors), stored)


def score_by_embedding(
    encoder: Encoder, compositions: Sequence[Composition], rows: Mapping[Picture, int], vectors: FloatArray
) -> Scores:
    """Cosines of pictures with captions, and of captions with each other; rows: each picture's vector."""
    captions = list(dict.fromkeys(caption for each in compositions for caption in each.captions))
    texts = dict(zip(captions, embed_texts(encoder, captions), strict=True))
    matches, pairs = [], []
    for each in compositions:
        own = np.stack([texts[caption] for caption in each.captions])
        matches.append(_multiply(vectors[[rows[picture] for picture in each.pictures]], own))
        pairs.append(_multiply(own, own))
    return Scores(matches, pairs)


def _multiply(left: FloatArray, right: FloatArray) -> FloatArray:
    """All inner products (n, m); equal rows give bit-identical results, which a matrix product may not."""
    products: FloatArray = (left[:, None] * right[None]).sum(axis=2)
    return products


def score_by_likelihood(
    encoder: Encoder,
    compositions: Sequence[Composition],
    rows: Mapping[Picture, int],
    tokens: StoredTokens | None,
) -> Scores | None:
    """Mean log-likelihood per token of each caption given each picture's tokens.

    None if there are no tokens, or the encoder cannot score texts.
    """
    if tokens is None or not can_talk(encoder):
        return None
    asked = dict.fromkeys(
        (rows[picture], caption)
        for each in compositions
        for picture in each.pictures
        for caption in each.captions
    )
    # Batches of captions of similar length need little padding.
    ordered = sorted(asked, key=lambda pair: len(pair[1]))
    texts = [caption for _, caption in ordered]
    likelihoods = match_texts(encoder, tokens, [row for row, _ in ordered], texts)
    found = dict(zip(ordered, likelihoods.tolist(), strict=True))
    return Scores(
        [
            np.array(
                [[found[rows[p], caption] for caption in each.captions] for p in each.pictures], np.float32
            )
            for each in compositions
        ],
        texts=None,
    )
