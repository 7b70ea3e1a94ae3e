"""The exception by which a step tells its loop that a batch was not trained.

    metrics = engine.train_step(batch, objective, rate, StepLimits(loss=9.0))  # may raise BadBatch

`guard.py` sets the limits, and decides how the run goes on.
"""

import math
from typing import NamedTuple


class BadBatch(RuntimeError):
    """A step that no rank took; the text names the fault of its batch."""


class StepLimits(NamedTuple):
    """A step is taken only up to this loss and gradient norm."""

    loss: float = math.inf
    grad_norm: float = math.inf


NO_LIMITS = StepLimits()
