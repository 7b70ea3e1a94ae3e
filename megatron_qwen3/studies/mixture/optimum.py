"""Finds the mixture with the lowest objective that a model of losses predicts, under caps.

    shares_P = lowest(fit.model, weights_T, natural_P, most_P, pull=0.01, tried_NP=tried)

The objective is the weighted mean of the targets' losses, and `pull` times the Kullback–Leibler
divergence of the mixture from the natural one: a law of some dozens of small runs is not to be
believed far from all of them (Olmix does the same, arXiv 2602.12237). Nor is it beyond all of them,
where it gave a domain no text at all that no run had been without: the mixture lies between those
that were tried. With laws this is convex, and pairwise Frank-Wolfe steps, which move weight from
one tried mixture to another (arXiv 1511.05932), find its one lowest point. Of boosting the best of
many mixtures are averaged, as RegMix does. Legend: N mixtures, P parts, T targets.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from megatron_qwen3.studies.mixture.regression import Laws, LossModel
from megatron_qwen3.studies.mixture.swarm import capped

Array = NDArray[np.float64]

_AVERAGED = 100  # best of the candidates, as RegMix has it
_TINY = 1e-12
_GAP, _MOST_STEPS = 1e-9, 100_000  # nats that the lowest point may still be below; steps of laws


def lowest(
    model: LossModel,
    weights_T: Array,
    natural_P: Array,
    most_P: Array,
    pull: float,
    tried_NP: Array,
) -> Array:
    """Shares of the parts, [P].

    tried_NP: for laws the mixtures that were tried; else many within the caps to choose from.
    """
    if isinstance(model, Laws):
        return _lowest_of_laws(model, weights_T, natural_P, most_P, pull, tried_NP)
    objective_N = model.predict(tried_NP) @ weights_T + pull * divergence(tried_NP, natural_P)
    best = np.argsort(objective_N)[: min(_AVERAGED, max(1, len(tried_NP) // 100))]
    return np.asarray(tried_NP[best].mean(0))


def divergence(shares_NP: Array, natural_P: Array) -> Array:
    """Kullback–Leibler, in nats, of mixtures from the natural one, [N]."""
    safe_NP = np.maximum(shares_NP, _TINY)
    return np.asarray((shares_NP * np.log(safe_NP / np.maximum(natural_P, _TINY))).sum(-1))


def _lowest_of_laws(
    laws: Laws, weights_T: Array, natural_P: Array, most_P: Array, pull: float, tried_NP: Array
) -> Array:
    """Between the tried mixtures, each cut to the caps; RuntimeError without an end."""
    tried_NP = np.stack([capped(shares_P, most_P) for shares_P in tried_NP])

    def slope(shares_P: Array) -> Array:
        ratio_P = np.log(np.maximum(shares_P, _TINY) / np.maximum(natural_P, _TINY))
        above_T = weights_T * np.exp(laws.slopes_TP @ shares_P)
        return np.asarray(above_T @ laws.slopes_TP + pull * (ratio_P + 1))

    weights_N = np.eye(len(tried_NP))[0]
    for _ in range(_MOST_STEPS):
        shares_P = weights_N @ tried_NP
        slope_N = tried_NP @ slope(shares_P)
        best = int(slope_N.argmin())
        if weights_N @ slope_N - slope_N[best] < _GAP:
            return np.asarray(shares_P / shares_P.sum())
        worst = int(np.where(weights_N > 0, slope_N, -np.inf).argmax())
        step = _step(slope, shares_P, tried_NP[best] - tried_NP[worst], weights_N[worst])
        weights_N[best] += step
        weights_N[worst] -= step
    raise RuntimeError(f"the mixture of lowest loss is not found in {_MOST_STEPS:,} steps")


def _step(slope: Callable[[Array], Array], from_P: Array, way_P: Array, most: float) -> float:
    """How far along the way, `most` at most, a convex objective is lowest."""

    def rises(step: float) -> float:
        return float(slope(from_P + step * way_P) @ way_P)

    return most if rises(most) <= 0 else float(brentq(rises, 0.0, most, xtol=1e-14))
