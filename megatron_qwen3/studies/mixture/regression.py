"""Predicts the loss of a mixture from those that were tried: by a law, and by gradient boosting.

    fit = choose(shares_NP, loss_NT, weights_T)       # by cross-validation
    fit.model.predict(shares_NP) @ weights_T, fit.of_targets[0].r2

The law is that of data mixing laws (arXiv 2403.16952), L = c + exp(k + t · r), one for each target;
as shares r add up to 1, k is in t already. It has a single lowest point. Boosting is RegMix's
(arXiv 2407.01492), by scikit-learn, and assumes nothing. Targets are kinds of held-out text.
Legend: N mixtures, P parts, T targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr

Array = NDArray[np.float64]

FOLDS = 5
LAW, BOOSTING = "log-linear law", "gradient boosting"
TREES = 100  # of boosting
_RIDGES = (1e-6, 1e-3, 1e-2, 1e-1)  # of the slopes, beside squared relative errors of L - c
_DEPTHS = np.linspace(-3.0, 4.0, 15)  # log of (lowest loss - c) / range of losses


class LossModel(Protocol):
    """Losses of mixtures."""

    def predict(self, shares_NP: Array, /) -> Array:
        """[N, T]."""

    def within(self, parts_GP: Array) -> LossModel:
        """The same of shares of groups, within which parts keep these ratios."""


@dataclass(frozen=True)
class Laws:
    """One law for each target: floor c, slopes t."""

    floor_T: Array
    slopes_TP: Array

    def predict(self, shares_NP: Array) -> Array:
        """c + exp(t · r)."""
        return np.asarray(self.floor_T + np.exp(shares_NP @ self.slopes_TP.T))

    def within(self, parts_GP: Array) -> Laws:
        """Laws again: a slope of a group is the mean of its parts' slopes."""
        return Laws(self.floor_T, self.slopes_TP @ parts_GP.T)


@dataclass(frozen=True)
class Boosted:
    """One regressor of scikit-learn for each target; groups are made of parts_GP."""

    regressors: tuple[Any, ...]
    parts_GP: Array

    def predict(self, shares_NG: Array) -> Array:
        """The sum of small trees."""
        shares_NP = shares_NG @ self.parts_GP
        return np.stack([one.predict(shares_NP) for one in self.regressors], axis=1)

    def within(self, parts_GP: Array) -> Boosted:
        """The same model of groups of its parts."""
        return Boosted(self.regressors, parts_GP @ self.parts_GP)


@dataclass(frozen=True)
class Quality:
    """How well losses that were not seen are predicted: share of their variance explained, and
    Spearman's rank correlation."""

    r2: float
    rank: float


@dataclass(frozen=True)
class Fit:
    """form: LAW or BOOSTING; error: of the objective, root of mean squares, of mixtures left out;
    predicted_N: the objective of each mixture, predicted without it."""

    form: str
    ridge: float
    model: LossModel
    error: float
    objective: Quality
    of_targets: tuple[Quality, ...]
    predicted_N: Array


def choose(shares_NP: Array, loss_NT: Array, weights_T: Array) -> list[Fit]:
    """A fit of each form, the one that predicts the objective of mixtures left out best first.

    weights_T: of the targets in the objective, adding up to 1.
    """
    by_ridge = [_validated(LAW, r, shares_NP, loss_NT, weights_T) for r in _RIDGES]
    law = min(by_ridge, key=lambda fit: fit.error)
    boosted = _validated(BOOSTING, 0.0, shares_NP, loss_NT, weights_T)
    return sorted([law, boosted], key=lambda fit: fit.error)


def fit_model(form: str, ridge: float, shares_NP: Array, loss_NT: Array) -> LossModel:
    """A model of one form of all these mixtures."""
    return fit_laws(shares_NP, loss_NT, ridge) if form == LAW else _boost(shares_NP, loss_NT)


def fit_laws(shares_NP: Array, loss_NT: Array, ridge: float = _RIDGES[0]) -> Laws:
    """A law for each target by least squares; slopes are drawn to their mean by `ridge`.

    For a floor c the logarithm of L - c is linear, which leaves one number to search for.
    """
    found = [_fit_law(shares_NP, loss_N, ridge) for loss_N in loss_NT.T]
    return Laws(np.array([floor for floor, _ in found]), np.stack([t for _, t in found]))


def quality(measured_N: Array, predicted_N: Array) -> Quality:
    """Of predictions."""
    around = float(((measured_N - measured_N.mean()) ** 2).sum())
    missed = float(((measured_N - predicted_N) ** 2).sum())
    is_flat = np.ptp(measured_N) == 0 or np.ptp(predicted_N) == 0
    rank = 0.0 if is_flat else float(spearmanr(measured_N, predicted_N).statistic)
    return Quality(1 - missed / around if around else 0.0, rank)


def _validated(form: str, ridge: float, shares_NP: Array, loss_NT: Array, weights_T: Array) -> Fit:
    predicted_NT = _left_out(lambda s, y: fit_model(form, ridge, s, y), shares_NP, loss_NT)
    measured_N, predicted_N = loss_NT @ weights_T, predicted_NT @ weights_T
    return Fit(
        form,
        ridge,
        fit_model(form, ridge, shares_NP, loss_NT),
        float(np.sqrt(((measured_N - predicted_N) ** 2).mean())),
        quality(measured_N, predicted_N),
        tuple(quality(*pair) for pair in zip(loss_NT.T, predicted_NT.T, strict=True)),
        predicted_N,
    )


def _left_out(fit: Callable[[Array, Array], LossModel], shares_NP: Array, loss_NT: Array) -> Array:
    """Each mixture's losses by a model of the other folds."""
    predicted_NT = np.empty_like(loss_NT)
    fold_N = np.random.default_rng(0).permutation(len(loss_NT)) % min(FOLDS, len(loss_NT))
    for fold in np.unique(fold_N):
        own = fold_N == fold
        predicted_NT[own] = fit(shares_NP[~own], loss_NT[~own]).predict(shares_NP[own])
    return predicted_NT


def _fit_law(shares_NP: Array, loss_N: Array, ridge: float) -> tuple[float, Array]:
    lowest, spread = float(loss_N.min()), max(float(np.ptp(loss_N)), 1e-9)

    def floor(depth: float) -> float:
        return float(lowest - spread * np.exp(depth))

    def missed(depth: float) -> float:
        slopes_P, penalty = _slopes(shares_NP, loss_N - floor(depth), ridge)
        errors_N = loss_N - floor(depth) - np.exp(shares_NP @ slopes_P)
        return float((errors_N**2).sum()) + penalty

    best = min(_DEPTHS, key=missed)
    around = (best - (_DEPTHS[1] - _DEPTHS[0]), best + (_DEPTHS[1] - _DEPTHS[0]))
    polished = minimize_scalar(missed, bounds=around, method="bounded", options={"xatol": 1e-6})
    depth = float(polished.x) if polished.fun < missed(best) else float(best)
    return floor(depth), _slopes(shares_NP, loss_N - floor(depth), ridge)[0]


def _slopes(shares_NP: Array, above_N: Array, ridge: float) -> tuple[Array, float]:
    """(t, its penalty) with exp(t · r) near `above_N`: weighted least squares of its logarithm.

    An error of the logarithm is a relative one, so the weights make errors of the loss of it.
    """
    middle_P = shares_NP.mean(0)
    design = np.column_stack([np.ones(len(above_N)), shares_NP - middle_P]) * above_N[:, None]
    scale = ridge * float((above_N**2).mean())
    drawn = np.sqrt(scale) * np.eye(design.shape[1])[1:]  # slopes to 0, the mean as it is
    target = np.concatenate([above_N * np.log(above_N), np.zeros(len(drawn))])
    level, *slopes = np.linalg.lstsq(np.vstack([design, drawn]), target, rcond=None)[0]
    slopes_P = np.array(slopes)
    return slopes_P + (level - slopes_P @ middle_P), scale * float(slopes_P @ slopes_P)


def _boost(shares_NP: Array, loss_NT: Array) -> Boosted:
    from sklearn.ensemble import GradientBoostingRegressor  # loads slowly

    settings: dict[str, Any] = {"n_estimators": TREES, "learning_rate": 0.1, "max_depth": 2}
    settings |= {"subsample": 0.8, "min_samples_leaf": 2, "random_state": 0}
    made: Sequence[Any] = [GradientBoostingRegressor(**settings) for _ in loss_NT.T]
    fitted = (one.fit(shares_NP, y_N) for one, y_N in zip(made, loss_NT.T, strict=True))
    return Boosted(tuple(fitted), np.eye(shares_NP.shape[1]))
