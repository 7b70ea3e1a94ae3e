"""The process that reads a rank's batches for DALI, step after step. No torch here.

    source = StepSource(read, first_step=120, steps=500)     # given to fn.external_source

DALI starts the process by spawn and sends it the pickled source over a pipe of its own; only arrays
come back. `read(step)` is pickled too: it should hold the places of the data, and open the files
only when it is called.
"""

import contextlib
import signal
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from data_prep.lifetime import die_with_parent
from megatron_qwen3.training.arrays import Arrays, Bytes, as_bytes

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_NOTHING = np.zeros(1, np.uint8)  # DALI takes no empty array


class Iteration(Protocol):
    """DALI's BatchInfo: iteration: number of the pipeline's batch, from 0."""

    iteration: int


class StepSource:
    """The batches of steps first_step, first_step + 1, …, in the form of `arrays.as_bytes`.

    A step that cannot be read, or from `steps` on, gives `_NOTHING` twice: when its turn comes, the
    rank reads it itself, and so raises the error where the user sees it.
    """

    def __init__(self, read: Callable[[int], Arrays], first_step: int, steps: int) -> None:
        self._read, self._first_step, self._steps = read, first_step, steps

    def __call__(self, info: Iteration) -> tuple[list[Bytes], list[Bytes]]:
        step = self._first_step + info.iteration
        said, data = _NOTHING, _NOTHING
        if step < self._steps:
            with contextlib.suppress(Exception):
                said, data = as_bytes(self._read(step))
        return [said], [data]

    def __reduce__(self) -> tuple[Any, ...]:
        return _in_worker, (self._read, self._first_step, self._steps)


def is_nothing(said: Bytes) -> bool:
    """Whether this stands for a step that was not read."""
    return said.size == _NOTHING.size


def _in_worker(read: Callable[[int], Arrays], first_step: int, steps: int) -> StepSource:
    """The source in its process, which ends with the rank and ignores signals: SLURM and terminals
    send a request to stop to all processes, but the rank still needs batches for its last steps."""
    die_with_parent()
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return StepSource(read, first_step, steps)
