"""pass@k, and means over tasks with confidence intervals.

    pass_at_k(samples=8, right=3, k=2)          # of one task, unbiased
    estimate([0.2, 1.0, 0.0])                   # Estimate(value, low, high, tasks) of many

An interval covers the results of other tasks of the same kind: tasks are drawn at random, samples
of one task are not independent (Miller 2024, arXiv 2411.00640, section 2).
"""

from collections.abc import Sequence
from math import comb, fsum, sqrt
from typing import NamedTuple

_Z = 1.959963984540054  # of the normal distribution: 95 % lie within


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
    """The mean of values, one for each task and from 0 to 1, and its interval; None for no task.

    Wilson's score interval (1927), which holds for few tasks and near 0 and 1, with as many trials
    as would give the variance of the mean (Kish 1965, the effective size of a sample). Tasks that
    are each solved sometimes vary less than tasks solved always or never; the variance of one more
    task of the latter kind is added, so that a few equal values are not taken as certain.
    ValueError where a value is outside of 0 to 1.
    """
    if not values:
        return None
    count, mean = len(values), fsum(values) / len(values)
    most = mean * (1 - mean)  # the variance where each value is 0 or 1
    spread = fsum((value - mean) ** 2 for value in values) + most
    trials = max(count, count * count * most / spread) if spread > 0 else count
    low, high = wilson(mean * trials, trials)
    return Estimate(mean, min(low, mean), max(high, mean), count)


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """The 95 % score interval of a proportion. ValueError without a trial."""
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials}")
    share, weight = successes / trials, _Z**2 / trials
    middle = (share + weight / 2) / (1 + weight)
    half = _Z * sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)
