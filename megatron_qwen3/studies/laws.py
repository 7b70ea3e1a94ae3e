"""Derives all laws about larger runs from the runs of a ladder, stage by stage.

    for laws in analyse(runs):
        laws.loss_law, laws.held_out, laws.optima
        laws.recommend(parameters=7.6e9, tokens=36e12, compute=1.9e24, sequence_length=4096)

A law that the runs do not determine is None, with the reason in `missing`; `doubts` give reasons
why laws that were found mean little. The law of loss is fitted to the best run of each size and
token count, the laws of tuning to all runs. Two results show how reliable the law of loss is: the
spread of laws of resampled runs, and its error on the largest runs when fitted to the smaller.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_qwen3.config import ConfigError
from megatron_qwen3.studies import isoflop, measurements, parametric, tuning
from megatron_qwen3.studies.isoflop import PowerLaw, Valley
from megatron_qwen3.studies.measurements import Measurement
from megatron_qwen3.studies.parametric import LossLaw
from megatron_qwen3.studies.tuning import Optimum, TuningLaw

Array = NDArray[np.float64]

_HELD_OUT_SHARE = 0.2
_INTERVAL = (5.0, 95.0)  # percentiles


@dataclass(frozen=True)
class Prediction:
    """A run of the most compute, and its loss as the law of the smaller runs predicts it."""

    run: Measurement
    predicted: float

    @property
    def error(self) -> float:
        """predicted / measured - 1."""
        return self.predicted / self.run.loss - 1


@dataclass(frozen=True)
class HeldOut:
    """The largest runs predicted from the others.

    guess_error: of taking the lowest loss of the smaller runs for each, which needs no law
    """

    law: LossLaw
    predictions: tuple[Prediction, ...]
    guess_error: float

    @property
    def mean_error(self) -> float:
        """Mean of |predicted / measured - 1|."""
        return float(np.mean([abs(p.error) for p in self.predictions]))


@dataclass(frozen=True)
class Recommendation:
    """How to train a model of N parameters on D tokens; None where no law was found.

    loss, low, high   predicted, with its 5 % and 95 % percentiles over the resampled laws
    best_parameters, best_tokens   that the same compute would be best spent on
    extrapolation     compute of the target over that of the largest run of the ladder
    """

    stage: str
    parameters: float
    tokens: float
    compute: float
    extrapolation: float
    loss: float | None = None
    low: float | None = None
    high: float | None = None
    best_parameters: float | None = None
    best_tokens: float | None = None
    lr: float | None = None
    global_batch: int | None = None

    def overlay(self) -> str:
        """The settings as TOML, to stand after the files of stage and model; "" without any."""
        lines = []
        if self.lr is not None:
            # Three digits are more than a law knows; the ladder's runs end at a tenth.
            lr = float(f"{self.lr:.3g}")
            lines += ["[optim]", f"lr = {lr:g}", f"min_lr = {lr / 10:.3g}"]
        if self.global_batch is not None:
            lines += ["", "[train]", f"global_batch = {self.global_batch}"]
        if not lines:
            return ""
        size = f"{self.parameters:.3g} parameters and {self.tokens:.3g} tokens"
        stage = f" of stage {self.stage}" if self.stage else ""
        head = f"# From the scaling laws{stage} for {size},\n"
        head += f"# {self.extrapolation:.3g} times the compute of the largest run they rest on.\n"
        return "\n".join([head, *lines]).replace("\n\n\n", "\n\n") + "\n"


@dataclass(frozen=True)
class StageLaws:
    """The laws of one stage. `runs` are all, `best` those that the law of loss rests on."""

    stage: str
    runs: tuple[Measurement, ...]
    best: tuple[Measurement, ...]
    loss_law: LossLaw | None
    resampled: tuple[LossLaw, ...]
    held_out: HeldOut | None
    valleys: tuple[Valley, ...]
    best_size: PowerLaw | None
    optima: tuple[Optimum, ...]
    lr_laws: tuple[TuningLaw, ...]
    batch_laws: tuple[TuningLaw, ...]
    missing: tuple[str, ...]
    doubts: tuple[str, ...]

    @property
    def has_any(self) -> bool:
        """Whether the runs determine a law of any kind."""
        return bool(self.loss_law or self.best_size or self.lr_laws or self.batch_laws)

    def interval(self, value: list[float]) -> tuple[float, float]:
        """The 5 % and 95 % percentiles of a number over the resampled laws."""
        low, high = np.percentile(value, _INTERVAL)
        return float(low), float(high)

    def recommend(
        self, parameters: float, tokens: float, compute: float, sequence_length: int
    ) -> Recommendation:
        """The recommendation of the laws for a run; batches are powers of two."""
        target = (parameters, tokens, compute)
        found: dict[str, float | int] = {}
        if self.loss_law:
            found["loss"] = float(self.loss_law.loss(parameters, tokens))
            best = self.loss_law.allocation(compute)
            if not math.isnan(best[0]):
                found["best_parameters"], found["best_tokens"] = best
        if self.resampled:
            losses = [float(law.loss(parameters, tokens)) for law in self.resampled]
            found["low"], found["high"] = self.interval(losses)
        if self.lr_laws:
            found["lr"] = self.lr_laws[0](*target)
        if self.batch_laws:
            sequences = self.batch_laws[0](*target) / sequence_length
            found["global_batch"] = 2 ** max(0, round(math.log2(sequences)))
        largest = max(run.compute for run in self.runs)
        return Recommendation(self.stage, *target, compute / largest, **found)  # type: ignore[arg-type]


def analyse(runs: Sequence[Measurement], draws: int = 200) -> list[StageLaws]:
    """The laws of every stage. ConfigError: the runs of none determine any law."""
    stages = dict.fromkeys(run.stage for run in runs)
    found = [_analyse([run for run in runs if run.stage == stage], draws) for stage in stages]
    if not any(laws.has_any for laws in found):
        reasons = [reason for laws in found for reason in laws.missing]
        raise ConfigError("\n".join(["no law can be read from these runs", *reasons]))
    return found


def _analyse(runs: list[Measurement], draws: int) -> StageLaws:
    best = measurements.best(runs)
    n, d, loss, compute = _columns(best)
    missing = []
    loss_law, resampled = None, []
    try:
        loss_law = parametric.fit(n, d, loss)
        resampled = parametric.bootstrap(loss_law, n, d, loss, draws)
    except ConfigError as error:
        missing.append(f"law of loss: {error}")
    valleys = isoflop.find(compute, n, d, loss)
    inside = [valley for valley in valleys if valley.bottom == "inside"]
    if len(inside) < 2:
        missing.append(
            f"best size over compute: of {len(valleys)} budgets with 3 sizes or more {len(inside)} "
            "have their lowest loss inside the sizes that were tried; at least 2 are needed"
        )
    optima = tuning.find(runs)
    lr_laws, batch_laws = tuning.fit_lr(optima), tuning.fit_batch(optima)
    missing += _missing_tuning(optima, lr_laws, batch_laws)
    return StageLaws(
        stage=runs[0].stage,
        runs=tuple(runs),
        best=tuple(best),
        loss_law=loss_law,
        resampled=tuple(resampled),
        held_out=hold_out(best) if loss_law else None,
        valleys=tuple(valleys),
        best_size=_best_size(inside),
        optima=tuple(optima),
        lr_laws=tuple(lr_laws),
        batch_laws=tuple(batch_laws),
        missing=tuple(missing),
        doubts=tuple(loss_law.doubts(loss.min()) if loss_law else ()),
    )


def hold_out(best: Sequence[Measurement]) -> HeldOut | None:
    """Fit to all but the fifth of the runs with the most compute, and predict those.

    None where the smaller runs determine no law.
    """
    by_compute = sorted(best, key=lambda run: run.compute)
    count = max(1, round(_HELD_OUT_SHARE * len(by_compute)))
    small, large = by_compute[:-count], by_compute[-count:]
    n, d, loss, _ = _columns(small)
    if not parametric.is_enough(n, d):
        return None
    law = parametric.fit(n, d, loss)
    lowest = min(run.loss for run in small)
    return HeldOut(
        law,
        tuple(Prediction(run, float(law.loss(run.parameters, run.tokens))) for run in large),
        float(np.mean([abs(lowest / run.loss - 1) for run in large])),
    )


def _best_size(inside: Sequence[Valley]) -> PowerLaw | None:
    if len(inside) < 2:
        return None
    return isoflop.fit_power([v.compute for v in inside], [v.parameters for v in inside])


def _missing_tuning(
    optima: Sequence[Optimum], lr_laws: Sequence[TuningLaw], batch_laws: Sequence[TuningLaw]
) -> list[str]:
    missing = []
    for name, laws, values in (
        ("learning rate", lr_laws, [o.lr for o in optima]),
        ("batch", batch_laws, [o.batch_tokens for o in optima]),
    ):
        if not laws:
            known = sum(map(math.isfinite, values))
            missing.append(
                f"law of the best {name}: {known} optima inside the tried values, of "
                f"{len(optima)} sweeps; at least 2 are needed"
            )
    return missing


def _columns(runs: Sequence[Measurement]) -> tuple[Array, Array, Array, Array]:
    """N, D, L and C, one float64 per run."""
    rows = [(run.parameters, run.tokens, run.loss, run.compute) for run in runs]
    n, d, loss, compute = np.array(rows, dtype=float).reshape(-1, 4).T
    return n, d, loss, compute
