"""Reranks the nearest images: by cosine, and by how likely the query is given their stored tokens.

The cosine compares two means of summary tokens. In pass 2 the model reads all k tokens of an image and scores
how likely the query is as its caption. Results of the two combined: docs/experiments.md.
"""

import numpy as np
from numpy.typing import NDArray

from encoders.base import FloatArray, Talker

_AT_ONCE = 64  # images per batch of pass 2: the logits of each are (words of the query, vocabulary)


def rank_again(cosines: FloatArray, likelihoods: FloatArray) -> NDArray[np.intp]:
    """The positions of n images, best first, by the sum of both scores, each standardised over them.

    Ties keep their order.
    """
    return np.argsort(-(_to_unit_spread(cosines) + _to_unit_spread(likelihoods)), kind="stable")


def judge_images(talker: Talker, summaries: FloatArray, text: str) -> FloatArray:
    """Mean log-likelihood per token of the text, given each image's tokens (n, k, width): float32 (n,)."""
    batches = (summaries[start : start + _AT_ONCE] for start in range(0, len(summaries), _AT_ONCE))
    scores = [talker.match(batch, [text] * len(batch)) for batch in batches]
    return np.concatenate(scores) if scores else np.empty(0, np.float32)


def _to_unit_spread(values: FloatArray) -> FloatArray:
    spread = values.std() if len(values) else 0.0
    return (values - values.mean()) / spread if spread else np.zeros_like(values)
