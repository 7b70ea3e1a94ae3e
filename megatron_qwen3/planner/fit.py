"""Fits the constants of calibration.py to published runs, and predicts runs left out of the fit.

    constants = fit(runs)
    comparisons = left_out_in_turn(runs, by=lambda run: run.source)

It minimises Cauchy's robust loss of log(predicted / published) plus each constant's squared
distance from its prior, over the logarithms of the constants, with scipy's least_squares. The error
on new runs is estimated by leaving out a whole source of runs, or a whole kind of GPU, and
predicting it.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import least_squares

from megatron_qwen3.planner.accuracy import ComparedRun
from megatron_qwen3.planner.calibration import CONSTANTS
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.published import PublishedRun
from megatron_qwen3.planner.step import Step

_PRIOR = 0.02  # weight of a constant's distance from its prior against one run's residual
_ROBUST = 0.15  # larger residuals count less and less: rows that no constant explains
_MOVE = 1e-3  # step of a logarithm, for slopes
_EVALUATIONS = 25


def fit(runs: Sequence[PublishedRun], report: Callable[[str], None] = print) -> dict[str, float]:
    """Constants for which `runs` are predicted best; the search begins at the priors, so that
    they depend on `runs` and on the priors alone.

    Untuned runs, which say little about reachable speed, count a tenth; Qwen3's count threefold.
    """
    names = list(CONSTANTS)
    priors = np.log([CONSTANTS[name]["prior"] for name in names])
    spreads = np.array([CONSTANTS[name]["spread"] for name in names])
    shares = np.array([_share(run) for run in runs])
    published = np.log(np.array([run.seconds for run in runs], dtype=float))
    # The same job was published again and again: each is priced once, for all of its runs.
    jobs = list({_job_of(run): run for run in runs}.values())
    numbers = {_job_of(run): number for number, run in enumerate(jobs)}
    places = [numbers[_job_of(run)] for run in runs]

    def residuals(x: np.ndarray) -> np.ndarray:
        constants = _constants(names, x)
        priced = np.array([_log_seconds(run, constants) for run in jobs])
        return np.concatenate([priced[places] - published, (x - priors) / spreads])

    def slopes(x: np.ndarray) -> np.ndarray:
        of_jobs = np.stack([_slopes(run, names, x) for run in jobs])
        return np.concatenate([of_jobs[places], np.diag(1 / spreads)])

    def loss(z: np.ndarray) -> np.ndarray:
        """(3, m): the loss of squares in units of _ROBUST², and its two derivatives."""
        count = len(runs)
        flat = np.stack([z, np.ones_like(z), np.zeros_like(z)]) * _PRIOR
        near = 1 / (1 + z[:count])
        flat[:, :count] = shares * np.stack([np.log1p(z[:count]), near, -(near**2)])
        return flat

    found = least_squares(
        residuals, priors, slopes, loss=loss, f_scale=_ROBUST, ftol=3e-4, max_nfev=_EVALUATIONS
    )
    errors = np.abs(found.fun[: len(runs)])
    told = f"{len(runs)} runs, {found.nfev} rounds: median {np.median(errors):.3f}"
    if not found.status:  # scipy's word for as many evaluations as were allowed
        told += f"; not at its end after {_EVALUATIONS} rounds"
    report(told)
    return _constants(names, found.x)


def left_out_in_turn(
    runs: Sequence[PublishedRun],
    by: Callable[[PublishedRun], str],
    report: Callable[[str], None] = print,
) -> list[ComparedRun]:
    """Every run, predicted with constants that were fitted without its group."""
    found = []
    for name in sorted({by(run) for run in runs}):
        report(f"without {name}")
        constants = fit([run for run in runs if by(run) != name], report)
        for run in runs:
            if by(run) == name:
                assert run.job and run.cluster
                seconds = Step.of(run.job, run.cluster, constants).seconds
                found.append(ComparedRun(run, seconds))
    return found


class _Read(dict[str, float]):
    """Constants that record which of them were read."""

    def __init__(self, constants: Mapping[str, float]) -> None:
        super().__init__(constants)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> float:
        self.names.add(name)
        return super().__getitem__(name)


def _constants(names: Sequence[str], x: np.ndarray) -> dict[str, float]:
    return dict(zip(names, np.exp(x).tolist(), strict=True))


def _job_of(run: PublishedRun) -> tuple[Job, str]:
    assert run.job and run.cluster
    return run.job, run.cluster.name


def _log_seconds(run: PublishedRun, constants: Mapping[str, float]) -> float:
    assert run.job and run.cluster
    return math.log(Step.of(run.job, run.cluster, constants).seconds)


def _slopes(run: PublishedRun, names: Sequence[str], x: np.ndarray) -> np.ndarray:
    """Slopes of one run by each constant; 0 for constants that its price never reads."""
    read = _Read(_constants(names, x))
    here = _log_seconds(run, read)
    slopes = np.zeros(len(names))
    for index, name in enumerate(names):
        if name in read.names:
            moved = x.copy()
            moved[index] += _MOVE
            slopes[index] = (_log_seconds(run, _constants(names, moved)) - here) / _MOVE
    return slopes


def _share(run: PublishedRun) -> float:
    share = 1.0 if run.is_tuned else 0.1
    return share * (3.0 if "qwen3" in run.model.lower() else 1.0)
