"""Finds the mixture with the lowest objective that a model of losses predicts, under caps.

    shares_P = lowest(fit.model, weights_T, natural_P, most_P, pull=0.01, tried_NP=tried)

The objective is the weighted mean of the targets' losses, and `pull` times the Kullback–Leibler
divergence of the mixture from the natural one: a law of some dozens of small runs is not to be
believed far from all of them (Olmix does the same, arXiv 2602.12237). Nor is it beyond all of them,
where it gave a domain no text at all that no run had been without: the mixture lies between those
that were tried. With laws this is convex: scipy finds its one lowest point. Of boosting the best of
many mixtures are averaged, as RegMix does. Legend: N mixtures, P parts, T targets.
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

    tried_NP: for laws the mixtures that were tried, the first of them within the caps; else many
    within the caps to choose from.
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
    """By SLSQP over weights of the tried mixtures, from the first."""

    def value(weights_N: Array) -> tuple[float, Array]:
        shares_P = weights_N @ tried_NP
        above_T = weights_T * np.exp(laws.slopes_TP @ shares_P)
        ratio_P = np.log(np.maximum(shares_P, _TINY) / np.maximum(natural_P, _TINY))
        slope_P = above_T @ laws.slopes_TP + pull * (ratio_P + 1)
        return float(above_T.sum() + pull * (shares_P * ratio_P).sum()), tried_NP @ slope_P

    whole = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}
    caps = {"type": "ineq", "fun": lambda w: most_P - w @ tried_NP, "jac": lambda _: -tried_NP.T}
    found = minimize(
        value,
        np.eye(len(tried_NP))[0],
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * len(tried_NP),
        constraints=[whole, caps],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    shares_P = np.clip(found.x @ tried_NP, 0.0, most_P)
    return np.asarray(shares_P / shares_P.sum())
