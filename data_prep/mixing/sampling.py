"""Shares tokens among languages, within a cap on epochs.

`fill` gives everyone in proportion to a preference, but no one more than a capacity. With equal
preferences it is UniMax; with tokens to the power 1/temperature it is temperature sampling, whose
small languages cannot be repeated beyond the cap.
"""

from collections.abc import Sequence
from itertools import accumulate

from data_prep.mixing.recipe import TEMPERATURE, UNIMAX


def fill(budget: float, preferences: Sequence[float], capacities: Sequence[float]) -> list[float]:
    """min(capacity, level · preference) of each, with the level at which they add up to `budget`.

    In ascending order of capacity / preference each takes its part of the rest, or its
    capacity: with equal preferences Algorithm 1 of UniMax (Chung et al. 2023, arXiv 2304.09151),
    whose N · |D_l| is the capacity. The capacities add up to `budget` at least.
    """
    given = [0.0] * len(preferences)
    order = sorted(
        (k for k, preference in enumerate(preferences) if preference > 0),
        key=lambda k: capacities[k] / preferences[k],
    )
    # Sums from the end: taking preferences off a total would leave rounding errors for the last.
    weights = list(accumulate(preferences[k] for k in reversed(order)))[::-1]
    left = budget
    for k, weight in zip(order, weights, strict=True):
        given[k] = min(capacities[k], left * preferences[k] / weight)
        left -= given[k]
    return given


def language_preferences(sampling: str, temperature: float, tokens: Sequence[float]) -> list[float]:
    """Each language's preferred share, adding up to 1, by its number of tokens.

    temperature: p ∝ tokens^(1/T) (Devlin's multilingual BERT, T = 1/0.7; Arivazhagan et al. 2019,
    arXiv 1907.05019, section 4.2; Conneau et al. 2020, arXiv 1911.02116, equation 1, α = 1/T);
    unimax: all alike; natural: p ∝ tokens.
    """
    exponent = {TEMPERATURE: 1 / temperature, UNIMAX: 0.0}.get(sampling, 1.0)
    largest = max(tokens)
    powers = [(count / largest) ** exponent if count > 0 else 0.0 for count in tokens]
    return [power / sum(powers) for power in powers]


def rounded(amounts: Sequence[float], total: int) -> list[int]:
    """Whole numbers that add up to `total`, which the amounts nearly do, by largest remainders."""
    parts = [int(amount) for amount in amounts]
    by_remainder = sorted(range(len(parts)), key=lambda k: parts[k] - amounts[k])
    for k in by_remainder[: total - sum(parts)]:
        parts[k] += 1
    return parts
