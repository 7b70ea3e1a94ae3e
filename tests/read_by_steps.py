"""A source of batches that another process is sent, and imports without torch: see test_dali.py."""

import os
import time
from dataclasses import dataclass

import numpy as np

from megatron_qwen3.training.arrays import Arrays


@dataclass(frozen=True)
class InTurn:
    """Step n is step n // K of source n % K, of K sources."""

    sources: tuple

    def __call__(self, step):
        number, source = divmod(step, len(self.sources))
        return self.sources[source](number)


@dataclass(frozen=True)
class Numbered:
    """Batches that hold their step's number and that of the process that read them.

    Steps in `bad` cannot be read; those in `slow` take longer than any test waits.
    """

    bad: tuple = ()
    slow: tuple = ()
    rows: int = 2
    length: int = 3

    def __call__(self, step):
        if step in self.bad:
            raise ValueError(f"step {step} is damaged")
        if step in self.slow:
            time.sleep(600)
        tokens_BS = np.full((self.rows, self.length), step)
        weights_BS = np.full(tokens_BS.shape, step / 7, np.float32)
        starts = [[0, 1 + (step + row) % (self.length - 1)] for row in range(self.rows)]
        extra = {"process": np.array([os.getpid()] * self.rows)}
        return Arrays(tokens_BS, tokens_BS, weights_BS, starts, extra=extra)
