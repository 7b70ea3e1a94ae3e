"""Finds the best size for a compute budget from runs of equal compute and different size.

    valleys = find(compute, parameters, tokens, loss)
    law = fit_power([v.compute for v in valleys], [v.parameters for v in valleys])

Chinchilla's second approach (arXiv 2203.15556, section 3.2): per budget a parabola of the loss over
log N, whose lowest point is the best size; then N* = k C^a through the lowest points. It assumes
nothing of the loss beyond the valley, and so checks the parametric law.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_qwen3.studies.levels import levels

Array = NDArray[np.float64]

_FEWEST = 3  # sizes of a parabola


@dataclass(frozen=True)
class Valley:
    """The runs of one budget and the parabola through them.

    bottom       where the parabola is lowest: "inside" the sizes that were tried, "below" the
                 smallest, "above" the largest, "none" where it opens downwards
    coefficients of (log N)², log N and 1
    parameters, tokens, loss  at the lowest point; NaN unless it is inside
    """

    compute: float
    sizes: tuple[float, ...]
    losses: tuple[float, ...]
    coefficients: tuple[float, float, float]
    bottom: str
    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class PowerLaw:
    """y = factor · x^exponent."""

    factor: float
    exponent: float

    def __call__(self, x: float) -> float:
        return float(self.factor * x**self.exponent)


def find(compute: Array, parameters: Array, tokens: Array, loss: Array) -> list[Valley]:
    """One valley per budget that at least three sizes were trained with, by rising compute."""
    valleys = []
    budgets = levels(compute)
    for group in (budgets == level for level in range(budgets.max() + 1)):
        if len(np.unique(parameters[group])) >= _FEWEST:
            valleys.append(_valley(compute[group], parameters[group], tokens[group], loss[group]))
    return valleys


def fit_power(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """The straight line of log y over log x by least squares; at least two different x."""
    slope, level = np.polyfit(np.log(x), np.log(y), 1)
    return PowerLaw(math.exp(level), float(slope))


def _valley(compute: Array, parameters: Array, tokens: Array, loss: Array) -> Valley:
    x = np.log(parameters)
    middle = x.mean()
    square, slope, level = np.polyfit(x - middle, loss, 2)
    lowest = middle - slope / (2 * square) if square > 0 else math.nan
    budget = float(np.exp(np.log(compute).mean()))
    bottom = "none" if square <= 0 else _side(lowest, x)
    is_inside = bottom == "inside"
    # Tokens of the budget at that size, from how many the runs beside it had: C / D is nearly
    # 6 N, but small models also pay for attention.
    per_token = np.interp(lowest, *_sorted(x, np.log(compute / tokens))) if is_inside else math.nan
    return Valley(
        compute=budget,
        sizes=tuple(parameters.tolist()),
        losses=tuple(loss.tolist()),
        coefficients=(
            float(square),
            float(slope - 2 * square * middle),
            float(level - slope * middle + square * middle**2),
        ),
        bottom=bottom,
        parameters=math.exp(lowest) if is_inside else math.nan,
        tokens=budget / math.exp(per_token) if is_inside else math.nan,
        loss=float(level - slope**2 / (4 * square)) if is_inside else math.nan,
    )


def _side(lowest: float, x: Array) -> str:
    if lowest < x.min():
        return "below"
    return "above" if lowest > x.max() else "inside"


def _sorted(x: Array, y: Array) -> tuple[Array, Array]:
    order = np.argsort(x)
    return x[order], y[order]
