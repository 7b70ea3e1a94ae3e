"""Fit the constants of calibration.py to published runs.

    constants = fit(runs)

Families of runs (same model, GPU, precision and layout) are split by a hash of their name: two
thirds are fitted, the rest tests, so that near-identical rows do not stand on both sides.
Minimised is the sum of log(predicted / published)² with a robust weight, plus each constant's
distance from its prior; Levenberg–Marquardt on the logarithms of the constants.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np

from megatron_qwen3.planner.calibration import CONSTANTS
from megatron_qwen3.planner.published import Run
from megatron_qwen3.planner.step import Step

_ROUNDS = 25
_PRIOR = 0.02  # weight of a constant's distance from its prior against one run's residual
_ROBUST = 0.15  # residuals beyond it count less and less: rows that no constant explains


def family(run: Run) -> str:
    """What near-identical rows share."""
    assert run.job is not None
    layout = run.job.layout
    sizes = (layout.tensor, layout.pipeline, layout.virtual, layout.context, layout.expert)
    return f"{run.job.model.name} {run.gpu} {run.precision} {sizes} {run.job.micro_batch}"


def is_fitted(run: Run) -> bool:
    """Whether the run's family is among the two thirds that are fitted."""
    digest = hashlib.sha256(family(run).encode()).digest()
    return digest[0] % 3 != 0


def fit(runs: Sequence[Run], report: Callable[[str], None] = print) -> dict[str, float]:
    """Constants for which `runs` are predicted best."""
    names = list(CONSTANTS)
    priors = np.log([CONSTANTS[name]["prior"] for name in names])
    spreads = np.array([CONSTANTS[name]["spread"] for name in names])
    x, damping = priors.copy(), 1e-2
    residuals = _residuals(runs, names, x)
    cost = _cost(residuals, (x - priors) / spreads)
    for round_ in range(_ROUNDS):
        slopes = np.stack([_slope(runs, names, x, i, residuals) for i in range(len(names))], 1)
        weights = _weights(runs, residuals)
        normal = slopes.T @ (weights[:, None] * slopes) + np.diag(_PRIOR / spreads**2)
        gradient = slopes.T @ (weights * residuals) + _PRIOR * (x - priors) / spreads**2
        for _ in range(6):
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -gradient)
            tried = _residuals(runs, names, x + step)
            tried_cost = _cost(tried, (x + step - priors) / spreads)
            if tried_cost < cost:
                break
            damping *= 4
        else:
            break
        gain = cost - tried_cost
        x, residuals, cost, damping = x + step, tried, tried_cost, damping / 3
        report(f"round {round_ + 1}: cost {cost:.4f}, median {np.median(np.abs(residuals)):.3f}")
        if gain < 5e-4 * cost:
            break
    return {name: float(math.exp(value)) for name, value in zip(names, x, strict=True)}


def _residuals(runs: Sequence[Run], names: list[str], x: np.ndarray) -> np.ndarray:
    constants = dict(zip(names, np.exp(x).tolist(), strict=True))
    return np.array([_residual(run, constants) for run in runs])


def _residual(run: Run, constants: dict[str, float]) -> float:
    assert run.job and run.cluster and run.seconds
    return math.log(Step.of(run.job, run.cluster, constants).seconds / run.seconds)


def _slope(
    runs: Sequence[Run], names: list[str], x: np.ndarray, index: int, residuals: np.ndarray
) -> np.ndarray:
    moved = x.copy()
    moved[index] += 1e-3
    return np.asarray((_residuals(runs, names, moved) - residuals) / 1e-3)


def _weights(runs: Sequence[Run], residuals: np.ndarray) -> np.ndarray:
    """Cauchy's robust weight; untuned runs, which say little about what can be had, count less."""
    share = np.array([1.0 if run.is_tuned else 0.1 for run in runs])
    share *= np.array([3.0 if "qwen3" in run.model.lower() else 1.0 for run in runs])
    return np.asarray(share / (1 + (residuals / _ROBUST) ** 2))


def _cost(residuals: np.ndarray, distance: np.ndarray) -> float:
    robust = _ROBUST**2 * np.log1p((residuals / _ROBUST) ** 2)
    return float(robust.sum() + _PRIOR * (distance**2).sum())
