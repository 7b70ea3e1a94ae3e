"""Reads batches with NVIDIA DALI, in a process of its own, and copies them on a stream of its own.

    with DaliReader(read, steps=500, device=engine.device) as reader:
        batch = reader.batch(step, then=next_step)

It is used like `reader.BatchReader` and gives the same batches to the bit, as its process calls the
same `read(step)`. A pipeline counts its batches from the step that it starts with: this step is all
its state, and DALI's own checkpoints are not used. Where steps are not consecutive, as after a
batch that is left out, a new pipeline is started.
"""

import contextlib
import gc
import importlib
import importlib.util
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.settings import ConfigError
from megatron_qwen3.training.arrays import BOUNDS, Arrays, Placed, said_of
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.dali_worker import StepSource, is_nothing

PACKAGE = "nvidia-dali-cuda130==2.4.0"  # as in setup.py
_AHEAD = 2  # batches that DALI reads ahead before it returns one


def check() -> None:
    """ConfigError where DALI is not installed."""
    try:
        is_here = importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # of the package nvidia itself
        is_here = False
    if not is_here:
        raise ConfigError(
            f'data.loader = "dali", but DALI is not installed: pip install {PACKAGE} (with a '
            'driver of CUDA 12 nvidia-dali-cuda120), or set data.loader = "thread"'
        )


class DaliReader:
    """Batches of steps below `steps`, on `device`; its process ends with the block.

    read: picklable, see `dali_worker.StepSource`.
    """

    def __init__(self, read: Callable[[int], Arrays], steps: int, device: torch.device) -> None:
        self._read, self._steps, self._device = read, steps, device
        self._pipeline: Any = None
        self._processes: list[BaseProcess] = []
        self._next = 0
        self._copied: tuple[Any, torch.cuda.Event] | None = None

    def batch(self, step: int, then: int) -> TokenBatch:
        """The batch of `step`; starts to read that of step `then`."""
        self._aim(step)
        said, data = self._run(step)
        self._next = step + 1
        head = np.array(said[0])
        if is_nothing(head):
            batch = TokenBatch.of_arrays(self._read(step)).to(self._device)
        else:
            batch = _batch(head, self._tensor(data))
        if then < self._steps:
            self._aim(then)
        return batch

    def _aim(self, step: int) -> None:
        """Make sure that the pipeline's next batch is that of `step`."""
        if self._pipeline is None or step != self._next:
            self._close()
            source = StepSource(self._read, step, self._steps)
            before = {process.pid for process in multiprocessing.active_children()}
            self._pipeline, self._next = _started(source, self._device), step
            children = multiprocessing.active_children()
            self._processes = [process for process in children if process.pid not in before]

    def _run(self, step: int) -> tuple[Any, Any]:
        try:
            # DALI would wait for ever for a worker that has died. Where it dies after this check,
            # guard.hang_seconds ends the run.
            if connection.wait([process.sentinel for process in self._processes], timeout=0):
                raise RuntimeError("its process has ended")
            said, data = self._pipeline.run()
            return said, data
        except RuntimeError as error:
            raise RuntimeError(
                f"DALI has no batch of step {step + 1}: {error}. Was it killed for want of memory? "
                'With data.loader = "thread" the rank reads by itself'
            ) from error

    def _tensor(self, data: Any) -> Tensor:
        """A copy of the bytes, which DALI may overwrite."""
        if self._device.type != "cuda":
            return torch.from_numpy(np.array(data[0]))
        plugin: Any = importlib.import_module("nvidia.dali.plugin.pytorch")
        if self._copied:  # event of the last batch's copy
            self._copied[1].synchronize()
        stream = torch.cuda.current_stream(self._device)
        bytes_T = torch.empty(data[0].shape(), dtype=torch.uint8, device=self._device)
        plugin.feed_ndarray(data[0], bytes_T, cuda_stream=stream)
        self._copied = data, stream.record_event()
        return bytes_T

    def _close(self) -> None:
        if self._copied:
            self._copied[1].synchronize()
        self._copied = self._pipeline = None
        gc.collect()  # a pipeline ends its process when collected, and it refers to itself

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def _started(source: StepSource, device: torch.device) -> Any:
    """A pipeline whose process reads already. Its outputs: descriptions, and bytes on `device`.

    One process: it reads many times as fast as training needs, and if it is killed no other waits
    for it.
    """
    nvidia: Any = importlib.import_module("nvidia.dali")
    fn: Any = importlib.import_module("nvidia.dali.fn")
    is_gpu = device.type == "cuda"
    pipeline = nvidia.Pipeline(
        batch_size=1,
        num_threads=1,
        device_id=_number(device) if is_gpu else None,
        prefetch_queue_depth=_AHEAD,
        py_num_workers=1,
        py_start_method="spawn",
    )
    with pipeline:
        said, data = fn.external_source(
            source=source,
            num_outputs=2,
            parallel=True,
            batch=True,
            batch_info=True,
            prefetch_queue_depth=_AHEAD,
            dtype=nvidia.types.DALIDataType.UINT8,
            ndim=1,
        )
        pipeline.set_outputs(said, data.gpu() if is_gpu else data)
    with _nothing_from_this_folder():
        pipeline.build()
    return pipeline


@contextlib.contextmanager
def _nothing_from_this_folder() -> Iterator[None]:
    """Python processes started within do not import modules of the current folder."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _batch(head: Any, bytes_T: Tensor) -> TokenBatch:
    """The batch of arrays in a buffer, on its device."""
    parts, starts = said_of(head)
    fields: dict[str, Any] = {p.name: _view(p, bytes_T) for p in parts if not p.is_extra}
    extra = {part.name: _view(part, bytes_T) for part in parts if part.is_extra}
    bounds = fields.pop(BOUNDS, None)
    stretches = None
    if starts is not None:
        stretches = Stretches.of(starts, fields["tokens_BS"].shape[1])
        stretches = replace(stretches, cu_seqlens=bounds)
    return TokenBatch(**fields, stretches=stretches, extra=extra)


def _view(part: Placed, bytes_T: Tensor) -> Tensor:
    dtype = torch.from_numpy(np.empty(0, part.dtype)).dtype
    return bytes_T[part.first_byte : part.first_byte + part.bytes].view(dtype).view(part.shape)
