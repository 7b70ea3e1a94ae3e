"""Predicts a run's best learning rate and batch from its size and tokens: power laws over sweeps.

    optima = find(runs)
    law = fit_lr(optima)
    law(parameters=8e9, tokens=36e12, compute=1.7e24)

Runs alike but for learning rate and batch form a sweep. Its best learning rate is the lowest point
of a parabola through the three best-placed runs over log lr; where several batches were tried, the
best batch is the lowest point over log B of the batches' best losses. A lowest point at the edge of
the tried values is only a bound, and is left out. Through the optima go, on logarithms by least
squares, both published forms: over compute (DeepSeek LLM, arXiv 2401.02954, section 3.1:
η = 0.3118 C^-0.125, B = 0.2920 C^0.3271) and over size and tokens (Step Law, arXiv 2503.04715:
η ∝ N^a D^b, B ∝ D^c). Qwen3 set both per pretraining stage from such laws without publishing them
(arXiv 2505.09388, section 3.2).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from megatron_qwen3.studies.levels import levels
from megatron_qwen3.studies.measurements import Measurement


@dataclass(frozen=True)
class Optimum:
    """The optimum of one sweep. batch_tokens is NaN where no batch, or the edge, was best.

    at_edge: "lr = 3e-3 is the highest that was tried" and the like; "" where both are inside
    """

    stage: str
    parameters: float
    tokens: float
    compute: float
    lr: float
    batch_tokens: float
    loss: float
    at_edge: str = ""


@dataclass(frozen=True)
class TuningLaw:
    """log y = constant + Σ exponent · log feature, and how far off it is.

    left_out_error: the largest factor by which it misses an optimum that it was not fitted to
    """

    form: str
    constant: float
    exponents: tuple[float, ...]
    points: int
    left_out_error: float

    def __call__(self, parameters: float, tokens: float, compute: float) -> float:
        features = _FORMS[self.form](parameters, tokens, compute)
        return math.exp(self.constant + float(np.dot(self.exponents, np.log(features))))


Features = Callable[[float, float, float], tuple[float, ...]]
# The features that y may depend on, by name; the fewest first, so that a tie goes to the simpler.

_FORMS: Final[dict[str, Features]] = {
    "constant": lambda n, d, c: (),
    "C": lambda n, d, c: (c,),
    "N": lambda n, d, c: (n,),
    "D": lambda n, d, c: (d,),
    "N, D": lambda n, d, c: (n, d),
}


def find(runs: Sequence[Measurement]) -> list[Optimum]:
    """The optimum of every sweep: runs of one stage, size and token count, three rates at least."""
    sweeps: dict[tuple[str, float, int], list[Measurement]] = defaultdict(list)
    for run, length in zip(runs, levels([run.tokens for run in runs]).tolist(), strict=True):
        if math.isfinite(run.lr):
            sweeps[run.stage, run.parameters, length].append(run)
    found = [_optimum(sweep) for sweep in sweeps.values()]
    return [optimum for optimum in found if optimum]


def fit_lr(optima: Sequence[Optimum]) -> list[TuningLaw]:
    """Laws of the best learning rate, the one that predicts best first; [] without optima."""
    return _fit([(o, o.lr) for o in optima])


def fit_batch(optima: Sequence[Optimum]) -> list[TuningLaw]:
    """Laws of the best batch in tokens, the one that predicts best first; [] without optima."""
    return _fit([(o, o.batch_tokens) for o in optima])


def _optimum(sweep: list[Measurement]) -> Optimum | None:
    """None where no batch of the sweep has three learning rates."""
    by_batch: dict[float, list[Measurement]] = defaultdict(list)
    for run in sweep:
        by_batch[run.batch_tokens].append(run)
    lowest = {b: _lowest([(r.lr, r.loss) for r in runs]) for b, runs in by_batch.items()}
    per_batch = {b: point for b, point in lowest.items() if point}
    if not per_batch:
        return None
    over_batches = _lowest([(b, point.y) for b, point in per_batch.items()])
    nearest = min(per_batch, key=lambda b: per_batch[b].y)
    if over_batches and not over_batches.edge:
        nearest = min(per_batch, key=lambda b: abs(math.log(b / over_batches.x)))
    rate = per_batch[nearest]
    edges = [f"lr = {rate.x:.3g} is the {rate.edge} that was tried"] if rate.edge else []
    if over_batches and over_batches.edge:
        edges.append(
            f"a batch of {over_batches.x:.6g} tokens is the {over_batches.edge} that was tried"
        )
    return Optimum(
        stage=sweep[0].stage,
        parameters=sweep[0].parameters,
        tokens=sweep[0].tokens,
        compute=sweep[0].compute,
        lr=math.nan if rate.edge else rate.x,
        batch_tokens=over_batches.x if over_batches and not over_batches.edge else math.nan,
        loss=min(run.loss for run in sweep),
        at_edge="; ".join(edges),
    )


@dataclass(frozen=True)
class _Lowest:
    x: float
    y: float
    edge: str  # "lowest" or "highest" where the lowest y is that of the first or last x


def _lowest(points: list[tuple[float, float]]) -> _Lowest | None:
    """The lowest point of the parabola over log x through the lowest point and its neighbours.

    Three points and no more: far from its lowest point the loss is no parabola, and a run that
    diverged must not bend it. None for fewer than three different x; runs of one x are averaged.
    """
    averaged = {x: float(np.mean([y for other, y in points if other == x])) for x, _ in points}
    ordered = sorted(averaged.items())
    if len(ordered) < 3:
        return None
    at = min(range(len(ordered)), key=lambda i: ordered[i][1])
    if at in (0, len(ordered) - 1):
        return _Lowest(*ordered[at], "highest" if at else "lowest")
    near = ordered[at - 1 : at + 2]
    x = np.log([x for x, _ in near])
    square, slope, level = np.polyfit(x - x[1], [y for _, y in near], 2)
    if square <= 0:  # all three alike
        return _Lowest(*ordered[at], "")
    return _Lowest(
        x=math.exp(x[1] - slope / (2 * square)), y=float(level - slope**2 / (4 * square)), edge=""
    )


def _fit(points: list[tuple[Optimum, float]]) -> list[TuningLaw]:
    known = [(o, y) for o, y in points if math.isfinite(y)]
    laws = [law for form in _FORMS if (law := _fit_form(form, known))]
    return sorted(laws, key=lambda law: law.left_out_error)


def _fit_form(form: str, points: list[tuple[Optimum, float]]) -> TuningLaw | None:
    """None where the points do not determine the form with at least one to spare."""
    rows = np.array(
        [[1.0, *np.log(_FORMS[form](o.parameters, o.tokens, o.compute))] for o, _ in points]
    )
    y = np.log([value for _, value in points])
    if not points or len(points) <= rows.shape[1] or not _is_determined(rows):
        return None
    numbers = np.linalg.lstsq(rows, y, rcond=None)[0]
    errors = [abs(_left_out(rows, y, i)) for i in range(len(points))]
    return TuningLaw(
        form,
        float(numbers[0]),
        tuple(numbers[1:].tolist()),
        len(points),
        math.exp(max(errors)),
    )


def _left_out(rows: np.ndarray, y: np.ndarray, i: int) -> float:
    """How far, in logarithms, the law of the other points is from point i; infinite if none."""
    others = np.delete(rows, i, axis=0)
    if not _is_determined(others):
        return math.inf
    numbers = np.linalg.lstsq(others, np.delete(y, i), rcond=None)[0]
    return float(rows[i] @ numbers - y[i])


def _is_determined(rows: np.ndarray) -> bool:
    """Whether the features vary, and not together: within 5 % they do not."""
    rank = int(np.linalg.matrix_rank(rows - [0, *rows.mean(0)[1:]], tol=0.05))
    return rank == int(rows.shape[1])
