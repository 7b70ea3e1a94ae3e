"""Fits loss as a law of model size and tokens: L(N, D) = E + A / N^α + B / D^β.

    law = fit(parameters, tokens, loss)
    law.loss(8e9, 36e12), law.allocation(1e24)

Chinchilla's third approach (arXiv 2203.15556, section 3.3 and appendix D.3): Huber's loss of the
logarithms with δ = 1e-3, by L-BFGS from a grid of starts. The Huber terms are added up and not
averaged, and the tolerance is tight: with an average the published fit had stopped early
(arXiv 2404.10102, section 3). Here logarithms of N and D are centred, so that the five numbers
hardly depend on one another while they are sought.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from megatron_qwen3.config import ConfigError
from megatron_qwen3.studies.levels import levels

Array = NDArray[np.float64]

_DELTA = 1e-3  # of log L: a run further off than 0.1 % pulls with a constant force
_STARTS = 12  # of the grid that are followed to the end
_NUMBERS = 5  # that the law has
_EXPONENTS = (1e-3, 5.0)  # bounds of α and β


@dataclass(frozen=True)
class LossLaw:
    """E, the loss that no model of this kind goes below, and the two terms above it."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, parameters: float | Array, tokens: float | Array) -> Array:
        """Nats per token of N parameters after D tokens."""
        model = self.A / np.asarray(parameters, dtype=float) ** self.alpha
        data = self.B / np.asarray(tokens, dtype=float) ** self.beta
        return np.asarray(self.E + model + data)

    def allocation(self, compute: float) -> tuple[float, float]:
        """N and D with the lowest loss of all with 6 N D = `compute` (eq. 4 there).

        NaN where the runs do not show the effect of size or tokens: any split would be made up.
        """
        if not (_is_seen(self.alpha) and _is_seen(self.beta)):
            return math.nan, math.nan
        model, data = self.alpha * self.A, self.beta * self.B
        ratio = (model / data) ** (1 / (self.alpha + self.beta))
        parameters = ratio * (compute / 6) ** (self.beta / (self.alpha + self.beta))
        return parameters, compute / 6 / parameters

    def doubts(self, lowest: float) -> list[str]:
        """Why the numbers, fitted to losses of `lowest` and more, mean little; [] if they do."""
        told = []
        for name, of, exponent in (("α", "size", self.alpha), ("β", "tokens", self.beta)):
            if not _is_seen(exponent):
                told.append(f"{name} = {exponent:.3g} is a bound: the effect of {of} is not seen")
        if self.E / lowest < 0.05:
            told.append(
                f"E = {self.E:.2g} is no floor: all losses, from {lowest:.3g}, are far above"
            )
        return told

    @property
    def size_exponent(self) -> float:
        """a of N* ∝ C^a; tokens grow with the rest, D* ∝ C^(1-a)."""
        return self.beta / (self.alpha + self.beta)


def _is_seen(exponent: float) -> bool:
    return _EXPONENTS[0] * 1.01 < exponent < _EXPONENTS[1] * 0.99


def fit(parameters: Array, tokens: Array, loss: Array) -> LossLaw:
    """The law of runs. ConfigError: too few of them, or too few sizes or token counts."""
    check_enough(parameters, tokens)
    centre = np.log(parameters).mean(), np.log(tokens).mean()
    x, y = np.log(parameters) - centre[0], np.log(tokens) - centre[1]
    target = np.log(loss)
    starts = np.array(list(_starts(float(loss.min()), float(loss.mean()))))
    costs = [_cost(start, x, y, target)[0] for start in starts]
    nearest = starts[np.argsort(costs)[:_STARTS]]
    found = min((_descend(start, x, y, target) for start in nearest), key=lambda f: f[1])[0]
    return _law(found, centre)


def refit(law: LossLaw, parameters: Array, tokens: Array, loss: Array) -> LossLaw:
    """The law of other runs, sought from `law` alone: for resampled runs, which differ little."""
    centre = np.log(parameters).mean(), np.log(tokens).mean()
    x, y = np.log(parameters) - centre[0], np.log(tokens) - centre[1]
    start = np.array(
        [
            np.log(law.A) - law.alpha * centre[0],
            np.log(law.B) - law.beta * centre[1],
            np.log(law.E),
            law.alpha,
            law.beta,
        ]
    )
    return _law(_descend(start, x, y, np.log(loss))[0], centre)


def is_enough(parameters: Array, tokens: Array) -> bool:
    """Whether the five numbers of the law can be told from such runs at all."""
    sizes, lengths = len(np.unique(parameters)), len(np.unique(levels(tokens)))
    return len(parameters) > _NUMBERS and sizes >= 3 and lengths >= 3


def check_enough(parameters: Array, tokens: Array) -> None:
    """ConfigError where a law cannot be told from the runs."""
    if not is_enough(parameters, tokens):
        raise ConfigError(
            f"{len(parameters)} runs of {len(np.unique(parameters))} sizes and "
            f"{len(np.unique(levels(tokens)))} token counts do not determine the {_NUMBERS} "
            f"numbers of E + A / N^alpha + B / D^beta; at least {_NUMBERS + 1} runs, 3 sizes and "
            "3 token counts are needed"
        )


def bootstrap(
    law: LossLaw, parameters: Array, tokens: Array, loss: Array, draws: int, seed: int = 0
) -> list[LossLaw]:
    """Laws of runs drawn with replacement: their spread is the uncertainty of `law`."""
    random = np.random.default_rng(seed)
    laws: list[LossLaw] = []
    for _ in range(20 * draws):  # a draw that has too few sizes is drawn again
        drawn = random.integers(len(loss), size=len(loss))
        if is_enough(parameters[drawn], tokens[drawn]):
            laws.append(refit(law, parameters[drawn], tokens[drawn], loss[drawn]))
        if len(laws) == draws:
            break
    return laws


def _starts(lowest: float, mean: float) -> Iterator[list[float]]:
    """(a, b, e, α, β): shares of the loss at the centre, and exponents from flat to steep."""
    shares, exponents = (0.03, 0.15, 0.5), (0.1, 0.3, 0.6, 1.2)
    floors = (0.1, 0.5, 0.9)
    for model, data, floor in itertools.product(shares, shares, floors):
        start = [np.log(model * mean), np.log(data * mean), np.log(floor * lowest)]
        for alpha, beta in itertools.product(exponents, exponents):
            yield [*start, alpha, beta]


def _descend(start: Array, x: Array, y: Array, target: Array) -> tuple[Array, float]:
    """Where the cost is lowest near `start`, and how low."""
    # Costs are of the order of δ²: the scale keeps the tolerances of L-BFGS from ending it early.
    scaled: Callable[[Array], tuple[float, Array]] = lambda numbers: tuple(  # type: ignore  # noqa: E731
        part / _DELTA**2 for part in _cost(numbers, x, y, target)
    )
    bounds = [(None, None)] * 3 + [_EXPONENTS] * 2
    options = {"maxiter": 2000, "ftol": 1e-13, "gtol": 1e-9}
    found = minimize(scaled, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return found.x, float(found.fun)


def _cost(numbers: Array, x: Array, y: Array, target: Array) -> tuple[float, Array]:
    """Huber's loss of log L, and its gradient in (a, b, e, α, β)."""
    a, b, e, alpha, beta = numbers
    terms = np.stack([a - alpha * x, b - beta * y, np.full_like(x, e)])
    log_loss = np.logaddexp.reduce(terms)
    residual = log_loss - target
    clipped = np.clip(residual, -_DELTA, _DELTA)
    cost = float((clipped * (residual - clipped / 2)).sum())
    share = np.exp(terms - log_loss) * clipped
    by_model, by_data, floor = share
    gradient = np.array(
        [by_model.sum(), by_data.sum(), floor.sum(), -(by_model * x).sum(), -(by_data * y).sum()]
    )
    return cost, gradient


def _law(numbers: Array, centre: tuple[float, float]) -> LossLaw:
    a, b, e, alpha, beta = (float(number) for number in numbers)
    return LossLaw(
        E=float(np.exp(e)),
        A=float(np.exp(a + alpha * centre[0])),
        alpha=alpha,
        B=float(np.exp(b + beta * centre[1])),
        beta=beta,
    )
