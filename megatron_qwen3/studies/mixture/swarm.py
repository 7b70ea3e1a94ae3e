"""Draws the mixtures that proxies are trained on: a swarm around the natural one.

    parts = Parts.of_cells(count)                    # or Parts.kept(…), to propose some anew
    shares_NP = swarm(natural_P, most_P, 40, seed=1, temperature=2.0)
    shares_NP @ parts.cells_PC                       # the shares of cells

Dirichlet's distribution around natural shares to the power 1 / temperature, from close to far away
of them, as RegMix has it (arXiv 2407.01492); none above the caps on epochs. A number of
mixtures linear in that of cells is enough (Olmix, arXiv 2602.12237). Legend: N mixtures, P parts of
which each is one cell, or some that keep their ratios, C cells, G groups of cells.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.mixing.sampling import fill
from megatron_qwen3.config import ConfigError

Array = NDArray[np.float64]

_STRENGTHS = (0.5, 4.0)  # concentration of a mixture for each of its parts, from far to close
PER_PART = 3  # mixtures, where a study does not say how many


def fewest(parts: int) -> int:
    """The smallest number of mixtures to which a law of so many parts is fitted."""
    return parts + 2


@dataclass(frozen=True)
class Parts:
    """The parts of a mixture, and how much of each cell a part is made of; rows add up to 1."""

    cells_PC: Array

    @classmethod
    def of_cells(cls, count: int) -> Parts:
        """Each cell by itself."""
        return cls(np.eye(count))

    @classmethod
    def kept(cls, shares_C: Array, is_kept_C: NDArray[np.bool_]) -> Parts:
        """The kept cells as one part, in the ratios of these shares, and each other by itself: the
        mixture reuse of Olmix (arXiv 2602.12237)."""
        single = np.eye(len(shares_C))[~is_kept_C]
        together_C = np.where(is_kept_C, shares_C, 0.0)
        if not together_C.sum():
            return cls(single)
        return cls(np.vstack([together_C / together_C.sum(), single]))

    def natural(self, natural_C: Array) -> Array:
        """Natural shares of the parts: those of their cells, [P]."""
        shares_P = (self.cells_PC > 0) @ natural_C
        return np.asarray(shares_P / shares_P.sum())

    def most(self, most_C: Array) -> Array:
        """The largest shares of parts with which no cell is above its own, [P]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            limits_PC = np.where(self.cells_PC > 0, most_C / self.cells_PC, np.inf)
        return np.asarray(np.minimum(limits_PC.min(1), 1.0))

    def grouped(self, keys: Sequence[Hashable], natural_P: Array) -> Array:
        """How much of each part a group is made of, where parts with one key keep their natural
        ratios, [G, P]."""
        order = {key: g for g, key in enumerate(dict.fromkeys(keys))}
        parts_GP = np.zeros((len(order), len(keys)))
        for p, key in enumerate(keys):
            parts_GP[order[key], p] = natural_P[p]
        return np.asarray(parts_GP / parts_GP.sum(1, keepdims=True))


def swarm(
    natural_P: Array, most_P: Array, count: int, seed: int, temperature: float = 2.0
) -> Array:
    """Mixtures [N, P], the first of them the natural one; more of them begin with the same.

    ConfigError where the caps leave no mixture.
    """
    check_room(most_P)
    rng = np.random.default_rng(seed)
    centre_P = natural_P ** (1 / temperature)
    centre_P = len(natural_P) * centre_P / centre_P.sum()
    rows = [capped(natural_P, most_P)]
    for _ in range(1, count):
        strength = np.exp(rng.uniform(*np.log(_STRENGTHS)))
        rows.append(capped(rng.dirichlet(strength * centre_P), most_P))
    return np.stack(rows)


def candidates(
    natural_P: Array, most_P: Array, count: int, seed: int, temperature: float = 2.0
) -> Array:
    """Many mixtures to choose from, [N, P], apart from those that a swarm of this seed has."""
    return swarm(natural_P, most_P, count, seed + 1_000_003, temperature)


def check_room(most_P: Array) -> None:
    """ConfigError where even all that may be read is less than a whole mixture."""
    if most_P.sum() < 1 - 1e-9:
        raise ConfigError(
            f"max_epochs allows {100 * most_P.sum():.3g} % of the tokens; raise max_epochs, lower "
            "tokens, or mix more text"
        )


def capped(shares_P: Array, most_P: Array) -> Array:
    """These shares, of which the excess over a cap goes to the others in proportion."""
    shares_P = np.maximum(shares_P, 1e-12)  # all others may be at their caps
    return np.array(fill(1.0, shares_P.tolist(), most_P.tolist()))
