"""Fits how runs scale: measured step times, efficiency, a law of each curve, cost per token.

    for curve in read(cases, price_per_gpu_hour=2.5):
        curve.rows[-1].efficiency, curve.law, curve.held_out_error

Efficiency is tokens per second and GPU over those at the smallest GPU count of the curve, for weak
and strong scaling alike. The law is the universal scalability law (Gunther, arXiv 0808.1431):
throughput X(m) = X₁ m / (1 + σ (m - 1) + κ m (m - 1)), m in units of the smallest count; σ is the
share of the work that does not become less per rank (Amdahl's, for strong scaling), κ the cost of
every pair of ranks. The law is tested by fitting it without the largest count and predicting that
one.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from megatron_qwen3.studies.sweep import Case
from megatron_qwen3.training.history import RunHistory

_FEWEST = 3  # counts that the law is fitted to: it has three numbers


@dataclass(frozen=True)
class MeasuredCase:
    """One measured case.

    step_seconds      median of the measured steps; low and high are their quartiles
    predicted_seconds of the planner for the hardware named; None without one
    cost_per_million_tokens   0 without a price
    """

    case: Case
    step_seconds: float
    low: float
    high: float
    tokens_per_second: float
    efficiency: float
    cost_per_million_tokens: float
    predicted_seconds: float | None = None


@dataclass(frozen=True)
class ScalabilityLaw:
    """Throughput over GPUs: `one` tokens/s at `smallest` GPUs, contention σ, coherence κ."""

    smallest: int
    one: float
    sigma: float
    kappa: float

    def tokens_per_second(self, gpus: float) -> float:
        """Of the whole run."""
        m = gpus / self.smallest
        return float(self.one * m / (1 + self.sigma * (m - 1) + self.kappa * m * (m - 1)))

    @property
    def most_gpus(self) -> float:
        """Beyond this count throughput falls; infinite without κ."""
        if self.kappa <= 0:
            return math.inf
        return self.smallest * math.sqrt(max(1.0, (1 - self.sigma) / self.kappa))


@dataclass(frozen=True)
class Curve:
    """One model and layout in weak or strong scaling; rows by rising GPU count.

    law              None for fewer than three counts
    held_out_error   predicted / measured - 1 of the largest count's throughput, by the law of the
                     others; None for fewer than four counts
    """

    scaling: str
    model: str
    layout: str
    rows: tuple[MeasuredCase, ...]
    law: ScalabilityLaw | None
    held_out_error: float | None

    @property
    def name(self) -> str:
        """Model and layout."""
        return f"{self.model}, {self.layout}"


def read(
    cases: Sequence[Case],
    warm_up_steps: int,
    price_per_gpu_hour: float = 0.0,
    predict: Callable[[Case], float] | None = None,
) -> list[Curve]:
    """The curves of all cases that are done; `predict` gives the step time expected of a case."""
    by_curve: dict[tuple[str, str, str], list[Case]] = defaultdict(list)
    for case in cases:
        if case.point.is_done:
            by_curve[case.curve].append(case)
    return [_curve(done, warm_up_steps, price_per_gpu_hour, predict) for done in by_curve.values()]


def _curve(
    cases: list[Case], warm_up_steps: int, price: float, predict: Callable[[Case], float] | None
) -> Curve:
    cases = sorted(cases, key=lambda case: case.gpus)
    seconds = [_step_seconds(case, warm_up_steps) for case in cases]
    rates = [
        case.point.config.step_tokens / median
        for case, (_, median, _) in zip(cases, seconds, strict=True)
    ]
    rows = tuple(
        MeasuredCase(
            case=case,
            step_seconds=median,
            low=low,
            high=high,
            tokens_per_second=rate,
            efficiency=rate / case.gpus / (rates[0] / cases[0].gpus),
            cost_per_million_tokens=price * case.gpus / 3600 / rate * 1e6,
            predicted_seconds=predict(case) if predict else None,
        )
        for case, (low, median, high), rate in zip(cases, seconds, rates, strict=True)
    )
    gpus = [case.gpus for case in cases]
    return Curve(*cases[0].curve, rows, fit(gpus, rates), held_out_error(gpus, rates))


def _step_seconds(case: Case, warm_up_steps: int) -> tuple[float, float, float]:
    """Quartiles of the steps after the first ones."""
    seconds = RunHistory.read(case.point.config.run_dir).column("step_seconds")[warm_up_steps:]
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return float(low), float(median), float(high)


def fit(gpus: Sequence[int], tokens_per_second: Sequence[float]) -> ScalabilityLaw | None:
    """The law of a curve, by least squares of relative errors; None for fewer than three counts.

    m / X is linear in 1/X₁, σ/X₁ and κ/X₁, none of which is below 0.
    """
    if len(gpus) < _FEWEST:
        return None
    m = np.array(gpus) / min(gpus)
    time = m / np.array(tokens_per_second)
    columns = np.stack([np.ones_like(m), m - 1, m * (m - 1)], axis=1)
    # Divided by the measured time, each equation counts relative errors.
    (one, sigma, kappa), _ = nnls(columns / time[:, None], np.ones_like(m))
    return ScalabilityLaw(min(gpus), 1 / one, sigma / one, kappa / one)


def held_out_error(gpus: Sequence[int], tokens_per_second: Sequence[float]) -> float | None:
    """Relative error at the largest count of the law of the others; None where there is none."""
    largest = int(np.argmax(gpus))
    others = [i for i in range(len(gpus)) if i != largest]
    law = fit([gpus[i] for i in others], [tokens_per_second[i] for i in others])
    if law is None:
        return None
    return law.tokens_per_second(gpus[largest]) / tokens_per_second[largest] - 1
