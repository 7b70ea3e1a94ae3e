"""Finds the mixture with the lowest objective that a model of losses predicts, under caps.

    shares_P = lowest(fit.model, weights_T, natural_P, most_P, pull=0.01, tried_NP=candidates)

The objective is the weighted mean of the targets' losses, and `pull` times the Kullback–Leibler
divergence of the mixture from the natural one: a law of some dozens of small runs is not to be
believed far from all of them (Olmix does the same, arXiv 2602.12237). With laws this is convex:
scipy finds its one lowest point. Of boosting the best of many mixtures are averaged, as RegMix
does. Legend: N mixtures, P parts, T targets.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from megatron_qwen3.studies.mixture.regression import Laws, LossModel

Array = NDArray[np.float64]

_AVERAGED = 100  # best of the candidates, as RegMix has it
_TINY = 1e-12


def lowest(
    model: LossModel,
    weights_T: Array,
    natural_P: Array,
    most_P: Array,
    pull: float,
    tried_NP: Array,
) -> Array:
    """Shares of the parts, [P].

    tried_NP: mixtures within the caps to choose from, which laws do not need.
    """
    if isinstance(model, Laws):
        return _lowest_of_laws(model, weights_T, natural_P, most_P, pull)
    objective_N = model.predict(tried_NP) @ weights_T + pull * divergence(tried_NP, natural_P)
    best = np.argsort(objective_N)[: min(_AVERAGED, max(1, len(tried_NP) // 100))]
    return np.asarray(tried_NP[best].mean(0))


def divergence(shares_NP: Array, natural_P: Array) -> Array:
    """Kullback–Leibler, in nats, of mixtures from the natural one, [N]."""
    safe_NP = np.maximum(shares_NP, _TINY)
    return np.asarray((shares_NP * np.log(safe_NP / np.maximum(natural_P, _TINY))).sum(-1))


def _lowest_of_laws(
    laws: Laws, weights_T: Array, natural_P: Array, most_P: Array, pull: float
) -> Array:
    """By SLSQP, from the natural mixture."""

    def value(shares_P: Array) -> tuple[float, Array]:
        above_T = weights_T * np.exp(laws.slopes_TP @ shares_P)
        ratio_P = np.log(np.maximum(shares_P, _TINY) / np.maximum(natural_P, _TINY))
        slope_P = above_T @ laws.slopes_TP + pull * (ratio_P + 1)
        return float(above_T.sum() + pull * (shares_P * ratio_P).sum()), np.asarray(slope_P)

    found = minimize(
        value,
        np.minimum(natural_P, most_P),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, float(most)) for most in most_P],
        constraints={"type": "eq", "fun": lambda s: s.sum() - 1, "jac": np.ones_like},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    shares_P = np.clip(found.x, 0.0, most_P)
    return np.asarray(shares_P / shares_P.sum())
