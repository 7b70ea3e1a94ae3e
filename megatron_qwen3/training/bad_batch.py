"""The word between a step and its loop on batches that are not trained.

    metrics = engine.train_step(batch, objective, rate, StepLimits(loss=9.0))  # may raise BadBatch

`guard.py` decides the limits, and what a run does then.
"""

import math
from typing import NamedTuple


class BadBatch(RuntimeError):
    """A step that was not taken, on any rank; the text says what was wrong with its batch."""


class StepLimits(NamedTuple):
    """The largest loss and gradient norm with which a step is taken."""

    loss: float = math.inf
    grad_norm: float = math.inf


NO_LIMITS = StepLimits()
