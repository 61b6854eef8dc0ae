"""Int8 quantization of summary tokens: symmetric, one scale per token, so an outlier costs only its own."""

import numpy as np
from numpy.typing import NDArray

from encoders.base import FloatArray

LEVELS = 127


def quantize_summaries(summaries: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
    """Quantize float (n, k, width) to int8 (n, k, width) and float32 scales (n, k).

    The error of a value is at most half a scale, where scale = max|x| / 127 over its token.
    """
    summaries = np.asarray(summaries, dtype=np.float32)
    scales = np.abs(summaries).max(axis=-1) / np.float32(LEVELS)  # (n, k)
    divisors = np.where(scales > 0, scales, 1)[..., None]
    levels = np.clip(np.rint(summaries / divisors), -LEVELS, LEVELS)
    return levels.astype(np.int8), scales


def dequantize_summaries(levels: NDArray[np.int8], scales: FloatArray) -> FloatArray:
    """Undo `quantize_summaries`: int8 (n, k, width) and scales (n, k) to float32 (n, k, width)."""
    return levels.astype(np.float32) * scales[..., None].astype(np.float32)
