"""Reads batches ahead: while one step is computed, the next step's batch is read.

    with reader.of_arrays(read, config, engine.device) as batches:
        batch = batches.batch(step, then=next_step)

data.loader chooses the reader: a thread (`BatchReader`) or DALI (`dali.py`). `read(step)` must
return the same for a step at any time; its errors are raised when the step's turn comes, and not at
all for steps that are left out. For a GPU the thread's batches lie in pinned memory, from which
`TokenBatch.to` copies without waiting.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import torch

from megatron_qwen3.settings import Config
from megatron_qwen3.training import dali
from megatron_qwen3.training.arrays import Arrays
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.graphs import CAPTURING


def check(config: Config) -> None:
    """ConfigError where data.loader needs a package that is missing."""
    if config.data.loader == "dali":
        dali.check()


def of_arrays(
    read: Callable[[int], Arrays], config: Config, device: torch.device
) -> "BatchReader | dali.DaliReader":
    """The reader of a run's batches. read: picklable, since another process may call it."""
    if config.data.loader == "dali":
        return dali.DaliReader(read, config.steps, device)
    return BatchReader(lambda step: TokenBatch.of_arrays(read(step)), config.steps, device)


class BatchReader:
    """Reads for steps below `steps`, one batch at a time, in a thread that ends with the block."""

    def __init__(self, read: Callable[[int], TokenBatch], steps: int, device: torch.device) -> None:
        self._read, self._steps, self._device = read, steps, device
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")
        self._ahead: tuple[int, Future[TokenBatch]] | None = None

    def batch(self, step: int, then: int) -> TokenBatch:
        """The batch of `step`; starts to read that of step `then`.

        `step` may differ from the last `then`: steps may have been left out since.
        """
        ahead, self._ahead = self._ahead, None
        is_read = ahead is not None and ahead[0] == step
        future = ahead[1] if ahead and is_read else self._thread.submit(self._read_here, step)
        batch = future.result()
        if then < self._steps:
            self._ahead = then, self._thread.submit(self._read_here, then)
        return batch

    def _read_here(self, step: int) -> TokenBatch:
        batch = self._read(step)
        if self._device.type != "cuda":
            return batch
        torch.cuda.set_device(self._device)  # a new thread is on GPU 0, and pinning uses a GPU
        with CAPTURING:
            return batch.pinned()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
