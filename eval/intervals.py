"""Intervals and tests, all at 95%: Wilson's for shares of independent trials, the bootstrap for everything else.

Several samples of one problem, and several seeds, are not independent trials: problems and seeds are drawn anew.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2_000


def wilson(right: int, n: int) -> list[float]:
    """Interval of a share of `n` independent trials (Wilson, 1927); [0, 1] for none."""
    from scipy.stats import binomtest

    return list(map(float, binomtest(right, n).proportion_ci(method="wilson"))) if n else [0.0, 1.0]


def interval(values: Sequence[float]) -> list[float]:
    """Interval of the mean of values, one per problem: Wilson's where all are 0 or 1, else the bootstrap."""
    if all(value in (0, 1) for value in values):
        return wilson(int(sum(values)), len(values))
    return list(map(float, np.quantile(_means(np.asarray([values])), [0.025, 0.975])))


def difference(first: ArrayLike, second: ArrayLike) -> tuple[float, float, float]:
    """Mean of `second` - `first` and its interval, by a bootstrap over problems, paired, and over seeds.

    Both are (seeds, problems), the same problems in the same order; seeds may differ in number. A bootstrap of a few
    seeds is too narrow: the interval is no less than Student's over the means of the seeds.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    low, high = np.quantile(_means(b, seed=1) - _means(a, seed=2), [0.025, 0.975])
    change, freedom = b.mean() - a.mean(), len(a) + len(b) - 2
    if freedom:
        from scipy.stats import t

        squares = sum(len(seeds) * seeds.mean(1).var() for seeds in (a, b))
        half = t.ppf(0.975, freedom) * np.sqrt(squares / freedom * (1 / len(a) + 1 / len(b)))
        low, high = min(low, change - half), max(high, change + half)
    return float(change), float(low), float(high)


def _means(scores: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    """(resamples,) means of (seeds, problems); every call draws the same problems."""
    seeds = np.random.default_rng(seed).multinomial(len(scores), np.full(len(scores), 1 / len(scores)), RESAMPLES)
    return np.einsum("rs,rs->r", seeds / len(scores), _problems(scores.shape[1]) @ scores.T)


@lru_cache(maxsize=4)
def _problems(count: int) -> NDArray[np.float64]:
    """(resamples, problems): how often each problem is drawn, as a share."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES) / count


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of McNemar's test (1947) from the problems that only A, or only B, solves."""
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def smallest_difference(spreads: Sequence[float], seeds: int) -> float | None:
    """The difference between two arms that `seeds` runs of each show with a chance of 80%, at a level of 5%.

    From the arms' pooled standard deviation over seeds and Student's t; None below two seeds.
    """
    if seeds < 2 or not spreads:
        return None
    from scipy.stats import t

    freedom = len(spreads) * (seeds - 1)
    pooled = np.sqrt(np.mean(np.square(spreads)) * 2 / seeds)
    return float((t.ppf(0.975, freedom) + t.ppf(0.8, freedom)) * pooled)
