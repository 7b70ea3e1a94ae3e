"""Rates and how sure they are: pass@k, and intervals over tasks.

    pass_at_k(samples=8, right=3, k=2)          # of one task, unbiased
    estimate([0.2, 1.0, 0.0])                   # Estimate(value, low, high, tasks) of many

An interval is what other tasks of the same kind would give: tasks are drawn, samples of one task
belong together (Miller 2024, arXiv 2411.00640, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt
from typing import NamedTuple

import numpy as np

_Z = 1.959963984540054  # of the normal distribution: 95 % lie within
_RESAMPLES = 2000
_SEED = 20210707  # of resampling: the same answers have the same interval


class Estimate(NamedTuple):
    """A mean over tasks with its 95 % interval."""

    value: float
    low: float
    high: float
    tasks: int


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that one of k samples is right, from `right` of `samples`, without bias.

    1 - C(n-c, k) / C(n, k), Chen et al. 2021, arXiv 2107.03374, equation 1. ValueError unless
    0 <= right <= samples and 1 <= k <= samples.
    """
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {right} right of {samples}")
    return 1 - comb(samples - right, k) / comb(samples, k)


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of values, one for each task, and its interval; None for no task.

    Where every value is 0 or 1, Wilson's score interval (1927), which holds for few tasks and at
    the ends; else the bootstrap's percentiles over tasks (Efron 1979).
    """
    if not values:
        return None
    data = np.asarray(values, np.float64)
    mean = float(data.mean())
    if np.isin(data, (0.0, 1.0)).all():
        low, high = wilson(int(data.sum()), len(data))
    else:
        drawn = np.random.default_rng(_SEED).integers(0, len(data), (_RESAMPLES, len(data)))
        low, high = np.quantile(data[drawn].mean(axis=1), (0.025, 0.975))
    return Estimate(mean, min(float(low), mean), max(float(high), mean), len(data))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion. ValueError without a trial."""
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials}")
    share, weight = successes / trials, _Z**2 / trials
    middle = (share + weight / 2) / (1 + weight)
    half = _Z * sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)
