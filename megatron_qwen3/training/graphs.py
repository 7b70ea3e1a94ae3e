"""CUDA graphs of parts of layers: captured once between two steps, replayed in those that can be.

    graphs = Graphs(model, replicas, optimizer)
    replayed = graphs.of_step(batch)      # before anything of the step; captures where it is time
    with replayed:                        # the schedule's passes, and no others
        ...

A graph is a sequence of kernels with all their arguments: it reads and writes the places of memory
that it was captured with, and whatever was a number then stays that number. So layers have their
graphs within a step's schedule alone, and only where its rows are whole and of the length that was
captured; evaluations, scores, texts and all other rows take the layers themselves. What differs
from step to step lies in tensors that are written in place, and that they still lie where they lay
is checked before every replay. megatron-core's TECudaGraphHelper captures: what it does between its
own steps is done here between ours.
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
"""Held while graphs are captured, and by other threads that ask the GPU's driver for memory: CUDA
gives a capture up where any thread of the process does."""


class Graphs:
    """The graphs of the layers of one model that is trained."""

    def __init__(self, model: Model, replicas: Sequence[Any], optimizer: Any) -> None:
        """`replicas`: the model's chunks, each with its gradients."""
        self._model, self._replicas, self._optimizer = model, replicas, optimizer
        self._steps = self._micro_batches = 0
        self._layers: list[Any] = []
        self._of_layers: list[list[Any]] = []
        self._places: list[int] = []
        self._news: list[str] = []

    def news(self) -> list[str]:
        """What is to be logged since the last call: what was captured."""
        news, self._news = self._news, []
        return news

    @property
    def count(self) -> int:
        """Graphs of this rank that were captured."""
        return sum(map(len, self._of_layers))

    def of_step(self, batch: TokenBatch) -> AbstractContextManager[None]:
        """Within, layers replay their graphs, where this batch can be; called on all ranks.

        The first steps are taken without, and the graphs captured after them, while no gradient
        counts. RuntimeError where what a graph reads or writes lies elsewhere by now.
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
        """Whether all of the rows are whole, and as long as those that were captured.

        Pipeline stages have a graph for each micro-batch, in the order of their schedule.
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
        """Capture the graphs of `micro_batches`, and leave neither gradients nor sums of it that
        the step does not set to 0 anyway."""
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
    """Where everything lies that graphs of these layers may read or write beside their rows."""
    weights = [weight for layer in layers for weight in layer.parameters()]
    gradients = [weight.main_grad for weight in weights]
    sums = [buffer for layer in layers for buffer in layer.buffers()]
    return [x.data_ptr() for x in (*weights, *gradients, *sums)]


def _gathers(replicas: Sequence[Any]) -> bool:
    """Whether a weight's forward pass waits until data ranks have gathered it: by hooks, which a
    replay does not call by itself."""
    return any(replica.use_forward_hook for replica in replicas)


@contextmanager
def _without_hooks(replicas: Sequence[Any]) -> Iterator[None]:
    """Within, forward passes wait for no weights: what is captured must have no hooks."""
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
    """Within, megatron-core has a count of a step's micro-batches, which it asks for here alone."""
    init_num_microbatches_calculator(
        rank=1,  # any but 0, which would log it
        rampup_batch_size=None,
        global_batch_size=micro_batches,
        micro_batch_size=1,
        data_parallel_size=1,
    )
    try:
        yield
    finally:
        destroy_num_microbatches_calculator()
