"""CUDA graphs of parts of layers: captured once between two steps, replayed where a step allows.

    graphs = Graphs(model, replicas, optimizer)
    replayed = graphs.of_step(batch)      # first call of a step; captures when due
    with replayed:                        # the schedule's passes, and no others
        ...

A graph is a sequence of kernels with all their arguments: it reads and writes the memory addresses
of its capture, and every number keeps its value. So graphs are used only within a step's schedule,
for whole rows of the captured length; evaluations, scores, generation and all other rows run the
layers themselves. Values that change from step to step lie in tensors that are written in place;
before every replay their addresses are checked. megatron-core's TECudaGraphHelper captures; the
work that it does between its own steps is done here between ours.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from megatron_qwen3.cpu.memory import gpu_memory
from megatron_qwen3.parallel.mcore import (
    TECudaGraphHelper,
    destroy_num_microbatches_calculator,
    init_num_microbatches_calculator,
)
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.model import Model

CAPTURING = threading.Lock()
"""Held during a capture, and by other threads that ask the GPU's driver for memory: CUDA aborts a
capture when any thread of the process does that."""


class Graphs:
    """The graphs of the layers of a model in training."""

    def __init__(self, model: Model, replicas: Sequence[Any], optimizer: Any) -> None:
        """replicas: the model's chunks with their gradients."""
        self._model, self._replicas, self._optimizer = model, replicas, optimizer
        self._steps = self._micro_batches = 0
        self._layers: list[Any] = []
        self._of_layers: list[list[Any]] = []
        self._places: list[int] = []
        self._news: list[str] = []

    def news(self) -> list[str]:
        """Log lines on captures since the last call."""
        news, self._news = self._news, []
        return news

    @property
    def count(self) -> int:
        """Graphs of this rank that were captured."""
        return sum(map(len, self._of_layers))

    def of_step(self, batch: TokenBatch) -> AbstractContextManager[None]:
        """Within, layers replay their graphs if this batch allows it; called on all ranks.

        The first steps run without graphs; then, while no gradients are in use, they are captured.
        RuntimeError where a graph's inputs or outputs have moved.
        """
        model = self._model
        if not model.config.overlap.cuda_graphs:
            return nullcontext()
        micro_batches = batch.rows // model.config.train.micro_batch
        if self._steps == model.chunks[0].config.cuda_graph_warmup_steps:
            self._capture(micro_batches)
        self._steps += 1
        if not self._layers or not self._can_replay(batch, micro_batches):
            return nullcontext()
        if self._places != _places(self._layers):
            raise RuntimeError(
                "weights, gradients or a router's sums were moved since CUDA graphs were captured, "
                "which read and write the old places; set overlap.cuda_graphs = []"
            )
        return self._attached()

    def _can_replay(self, batch: TokenBatch, micro_batches: int) -> bool:
        """Whether all rows are whole and of the captured length.

        A pipeline stage has a graph for each micro-batch, in the order of its schedule.
        """
        config, layout = self._model.config, self._model.layout
        is_whole = batch.sequences() is None and batch.length == config.data.sequence_length
        return is_whole and (layout.pipeline == 1 or micro_batches == self._micro_batches)

    @contextmanager
    def _attached(self) -> Iterator[None]:
        for layer, graphs in zip(self._layers, self._of_layers, strict=True):
            layer.cuda_graphs = graphs
        try:
            yield
        finally:
            for layer in self._layers:
                layer.cuda_graphs = []

    def _capture(self, micro_batches: int) -> None:
        """Capture the graphs of `micro_batches`. The capture leaves no gradients or sums behind,
        except those that the step zeroes anyway."""
        config, chunk = self._model.config, self._model.chunks[0]
        began, before = time.perf_counter(), gpu_memory()
        with ExitStack() as held:
            held.enter_context(CAPTURING)
            held.enter_context(self._model.groups.current())
            held.enter_context(_counted(micro_batches))
            held.enter_context(_without_hooks(self._replicas))
            helper = TECudaGraphHelper(
                list(self._replicas),
                chunk.config,
                config.data.sequence_length,
                config.train.micro_batch,
                [self._optimizer],
            )
            helper.create_cudagraphs()
        if _gathers(self._replicas):
            helper.cuda_graph_set_manual_hooks()
        self._layers, self._micro_batches = list(helper.flattened_callables), micro_batches
        self._of_layers = [layer.cuda_graphs for layer in self._layers]
        for layer in self._layers:
            layer.cuda_graphs = []
        self._places = _places(self._layers)
        self._news.append(self._described(time.perf_counter() - began, before))

    def _described(self, seconds: float, before: dict[str, float]) -> str:
        parts = ", ".join(self._model.config.overlap.cuda_graphs)
        line = f"CUDA graphs: {parts}, {self.count:,} of this rank, captured in {seconds:.1f} s"
        if not before:
            return line
        taken = gpu_memory()["memory_reserved_bytes"] - before["memory_reserved_bytes"]
        return f"{line}; torch holds {taken / 2**30:+.2f} GiB more of the GPU's memory"


def _places(layers: Sequence[Any]) -> list[int]:
    """Addresses of all memory that graphs of these layers use, apart from their rows."""
    weights = [weight for layer in layers for weight in layer.parameters()]
    gradients = [weight.main_grad for weight in weights]
    sums = [buffer for layer in layers for buffer in layer.buffers()]
    return [x.data_ptr() for x in (*weights, *gradients, *sums)]


def _gathers(replicas: Sequence[Any]) -> bool:
    """Whether forward passes wait for data ranks to gather weights: by hooks, which a replay does
    not run by itself."""
    return any(replica.use_forward_hook for replica in replicas)


@contextmanager
def _without_hooks(replicas: Sequence[Any]) -> Iterator[None]:
    """Within, forward passes wait for no weights: captured code must have no hooks."""
    waiting = [replica for replica in replicas if replica.use_forward_hook]
    for replica in waiting:
        replica.disable_forward_pre_hook(param_sync=False)
    try:
        yield
    finally:
        for replica in waiting:
            replica.enable_forward_pre_hook()


@contextmanager
def _counted(micro_batches: int) -> Iterator[None]:
    """Within, megatron-core's global count of micro-batches is set; only captures read it."""
    init_num_microbatches_calculator(
        rank=1,  # any but 0, since rank 0 would log it
        rampup_batch_size=None,
        global_batch_size=micro_batches,
        micro_batch_size=1,
        data_parallel_size=1,
    )
    try:
        yield
    finally:
        destroy_num_microbatches_calculator()
