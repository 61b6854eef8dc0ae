"""95 % confidence intervals, by bootstrap for any mean, and Wilson's for proportions."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SEED = 0
DRAWS = 1000
_NORMAL_QUANTILE = 1.959963984540054  # leaves 2.5 % at each end
_ENDS = (2.5, 97.5)


class Interval(NamedTuple):
    """The two ends of a 95 % interval."""

    low: float
    high: float


def bootstrap_means(values: NDArray[np.float64]) -> list[Interval]:
    """Percentile bootstrap of the mean of each column of (queries, measures), resampling whole rows.

    1,000 resamples of as many rows as given, with replacement and a fixed seed. Source: Efron 1979.
    """
    random = np.random.default_rng(SEED)
    count = len(values)
    means = np.stack(
        [
            np.bincount(random.integers(0, count, count), minlength=count) @ values / count
            for _ in range(DRAWS)
        ]
    )
    return [Interval(float(low), float(high)) for low, high in np.percentile(means, _ENDS, axis=0).T]


def find_wilson_interval(successes: int, count: int) -> Interval:
    """Wilson's interval of a proportion of independent trials, valid even for few trials or extreme shares.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    share, spread = successes / count, _NORMAL_QUANTILE**2 / count
    centre = share + spread / 2
    margin = np.sqrt(spread * share * (1 - share) + spread**2 / 4)
    return Interval(
        max(0.0, float((centre - margin) / (1 + spread))), min(1.0, float((centre + margin) / (1 + spread)))
    )
