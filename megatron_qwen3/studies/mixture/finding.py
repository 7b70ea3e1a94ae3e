"""Evaluates the proxies of a study: laws of loss, the best mixture, and its loss when it was run.

    tried = TriedMixtures.read(corpus, parts, shares_NP, points)  # losses of the runs that are done
    found = find(corpus, parts, tried)                            # fits, and a mixture of each name
    rows = compared(tried, runs(corpus, found, first))            # measured losses of the mixtures

Mixtures are compared by name: NATURAL, the one by coarse labels, within which text is read as often
as there is of it, and the one by CELLS. Legend: N mixtures, P parts, C cells, T targets, K stages,
G groups of parts.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as students_t

from megatron_qwen3.config import ConfigError
from megatron_qwen3.studies.local import Point
from megatron_qwen3.studies.mixture import optimum
from megatron_qwen3.studies.mixture.regression import BOOSTING, Fit, choose
from megatron_qwen3.studies.mixture.study import MixtureCorpus
from megatron_qwen3.studies.mixture.swarm import Parts, candidates, capped, fewest
from megatron_qwen3.training.history import RunHistory
from megatron_qwen3.training.metrics_file import ALL_SOURCES

Array = NDArray[np.float64]

NATURAL, CELLS = "natural", "by cells"
_CANDIDATES = 20_000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class TriedMixtures:
    """Mixtures and their losses. targets: names, as results have them; weights_T: of the
    objective, adding up to 1; loss_KNT: at the end of each stage, nats per token."""

    targets: tuple[str, ...]
    weights_T: Array
    shares_NP: Array
    loss_KNT: Array

    @property
    def objective_N(self) -> Array:
        """At the end of the runs."""
        return np.asarray(self.loss_KNT[-1] @ self.weights_T)

    @classmethod
    def read(
        cls, corpus: MixtureCorpus, parts: Parts, shares_NP: Array, points: Sequence[Point]
    ) -> TriedMixtures | None:
        """None where too few runs are done to fit anything. ConfigError: an objective that no
        target has a part in."""
        done = [n for n, point in enumerate(points) if point.is_done]
        if len(done) < fewest(len(parts.cells_PC)):
            return None
        ends = corpus.steps_of_stages
        losses = [_losses(points[n], ends) for n in done]
        targets = tuple(sorted(set.intersection(*(set(at[-1]) for at in losses))))
        of_stages = ([[at[k][name] for name in targets] for at in losses] for k in range(len(ends)))
        loss_KNT = np.array(list(of_stages))
        return cls(targets, _weights(corpus, targets), shares_NP[done], loss_KNT)


@dataclass(frozen=True)
class BestMixtures:
    """fits: of the losses at the end, the chosen first; mixtures: by name their shares of cells;
    stages_KC: of each stage, the last of which is the mixture by CELLS; predicted: objectives."""

    fits: list[Fit]
    mixtures: dict[str, Array]
    stages_KC: Array
    predicted: dict[str, float]


@dataclass(frozen=True)
class CheckedMixture:
    """Runs of one mixture, a loss for each seed. ahead: by how much the mixture by CELLS has a
    lower loss, with half of the interval that holds 95 % of such means; None for one seed."""

    name: str
    losses: tuple[float, ...]
    ahead: float = 0.0
    plus_minus: float | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.losses)


def find(corpus: MixtureCorpus, parts: Parts, tried: TriedMixtures) -> BestMixtures:
    """The mixtures with the lowest objective of those within the caps.

    Without that of coarse labels where no such mixture is: the cap of one cell is its group's.
    """
    natural_P, most_P = parts.natural(corpus.natural_C), parts.most(corpus.most_C)
    fits_K = [choose(tried.shares_NP, loss_NT, tried.weights_T) for loss_NT in tried.loss_KNT]
    fit, study = fits_K[-1][0], corpus.study

    def lowest(fit: Fit, groups: Parts) -> Array:
        """Shares of cells, where parts keep their ratios within groups, and the loss expected."""
        natural_G, most_G = groups.natural(natural_P), groups.most(most_P)
        tried_NG = (
            candidates(natural_G, most_G, _CANDIDATES, study.seed, study.temperature)
            if fit.form == BOOSTING
            else tried.shares_NP @ (groups.cells_PC > 0).T
        )
        model = fit.model.within(groups.cells_PC)
        found = (model, tried.weights_T, natural_G, most_G, study.pull, tried_NG)
        return np.asarray(optimum.lowest(*found) @ groups.cells_PC)

    every = Parts.of_cells(len(natural_P))
    stages_KP = np.stack([lowest(fits[0], every) for fits in fits_K])
    mixtures_P = {CELLS: stages_KP[-1]}
    if corpus.coarse:
        grouped = Parts(parts.grouped(_coarse_keys(corpus, parts), natural_P))
        if grouped.most(most_P).sum() >= 1:
            mixtures_P[_coarse_name(corpus)] = lowest(fit, grouped)
    if len(parts.cells_PC) == len(corpus.cells):  # else the natural ratios are no mixture of parts
        mixtures_P[NATURAL] = capped(natural_P, most_P)
    predicted = {
        name: float((fit.model.predict(shares_P[None]) @ tried.weights_T)[0])
        for name, shares_P in mixtures_P.items()
    }
    mixtures = {name: shares_P @ parts.cells_PC for name, shares_P in mixtures_P.items()}
    mixtures[NATURAL] = capped(corpus.natural_C, corpus.most_C)
    return BestMixtures(fits_K[-1], mixtures, stages_KP @ parts.cells_PC, predicted)


def runs(
    corpus: MixtureCorpus, found: BestMixtures, first: tuple[Array, Point]
) -> dict[str, list[Point]]:
    """The runs that compare the mixtures, one for each seed. first: a mixture that was tried with
    the first seed, which is not tried again."""
    by_name = {}
    for name, shares_C in found.mixtures.items():
        mark = hashlib.sha256(np.round(shares_C, 9).tobytes()).hexdigest()[:8]
        by_name[name] = [
            first[1]
            if seed == 0 and np.allclose(shares_C, first[0], atol=1e-9)
            else corpus.point(shares_C, f"check-{mark}-{seed + 1}", corpus.study.seed + seed)
            for seed in range(corpus.study.seeds)
        ]
    return by_name


def compared(tried: TriedMixtures, points: Mapping[str, Sequence[Point]]) -> list[CheckedMixture]:
    """Finished runs of `runs`, seed by seed; the lowest loss first."""
    losses = {
        name: tuple(_objective(tried, point) for point in own)
        for name, own in points.items()
        if all(point.is_done for point in own)
    }
    of_cells = losses.get(CELLS, ())
    rows = []
    for name, own in losses.items():
        ahead = [other - best for other, best in zip(own, of_cells, strict=False)]
        rows.append(
            CheckedMixture(name, own, *_mean(ahead)) if ahead else CheckedMixture(name, own)
        )
    return sorted(rows, key=lambda row: row.mean)


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    """And half of Student's interval around it."""
    if len(values) < 2:
        return values[0], None
    width = float(students_t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1))
    return statistics.fmean(values), width * statistics.stdev(values) / math.sqrt(len(values))


def _objective(tried: TriedMixtures, point: Point) -> float:
    last = _losses(point, [point.config.steps])[0]
    return float(np.array([last[name] for name in tried.targets]) @ tried.weights_T)


def _losses(point: Point, steps: Sequence[int]) -> list[dict[str, float]]:
    """After each of the steps the held-out loss of every target. ConfigError: one is missing."""
    at: dict[int, dict[str, float]] = {step: {} for step in steps}
    for row in RunHistory.read(point.config.run_dir).evaluations:
        if row["step"] in at and row["source"] != ALL_SOURCES:
            at[row["step"]][row["source"]] = float(row["loss"])
    for step, losses in at.items():
        if not losses or not all(map(math.isfinite, losses.values())):
            raise ConfigError(
                f"{point.config.run_dir}: no finite held-out losses after step {step}"
            )
    return list(at.values())


def _labels_of_targets(corpus: MixtureCorpus) -> dict[str, dict[str, str]]:
    """By the names that results have."""
    rows = ({label: source.labels[label] for label in corpus.targets} for source in corpus.sources)
    return {"/".join(labels.values()): labels for labels in rows}


def _weights(corpus: MixtureCorpus, targets: Sequence[str]) -> Array:
    """Of targets in the objective, adding up to 1."""
    objective, labels = corpus.study.objective, _labels_of_targets(corpus)
    rows = [[objective.get(n, {}).get(v, 1.0) for n, v in labels[name].items()] for name in targets]
    weights_T = np.array([math.prod(row) for row in rows])
    if not weights_T.sum():
        raise ConfigError("objective: all targets have the weight 0")
    return np.asarray(weights_T / weights_T.sum())


def _coarse_name(corpus: MixtureCorpus) -> str:
    return f"by {' and '.join(corpus.coarse)}"


def _coarse_keys(corpus: MixtureCorpus, parts: Parts) -> list[object]:
    """Of each part the values of its coarse labels; parts of several cells are groups already."""
    keys: list[object] = []
    for number, cells_C in enumerate(parts.cells_PC):
        own = np.flatnonzero(cells_C)
        labels = corpus.cells[own[0]].labels
        is_single = len(own) == 1
        keys.append(tuple(labels.get(n, ()) for n in corpus.coarse) if is_single else number)
    return keys
