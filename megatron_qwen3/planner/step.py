"""Seconds of a training step, part by part.

    step = Step.of(job, cluster, calibration.load())
    step.seconds, step.parts, step.hidden

Layers are priced by layer_time.py and combined by the pipeline schedule. The step is the sum of the
slowest pipeline rank's work and waiting, gradient reduction, the optimizer and jitter.
"""

import math
from dataclasses import fields
from functools import cached_property, lru_cache

from megatron_qwen3.planner import network, schedule
from megatron_qwen3.planner.architecture import Architecture
from megatron_qwen3.planner.hardware import (
    HOST_LINK_GB_PER_S,
    HOST_MEMORY_GB_PER_S,
    Cluster,
)
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.layer_time import Constants, LayerTimer, Pass

_TRANSFER_LATENCY = 10e-6  # of one send between pipeline ranks
# AdamW reads gradient, master weight and two moments, writes three of them and the bf16 weight;
# clipping reads every gradient once more.
_ADAM_BYTES, _NORM_BYTES = 30, 4
# Of a weight on the host: its gradient comes, the bf16 weight goes back, and AdamW moves 28 bytes.
_TO_HOST_BYTES, _FROM_HOST_BYTES, _HOST_ADAM_BYTES = 4, 2, 28


class Step:
    """Seconds of one step; `parts` add up to it, `hidden` runs beside them and is not in it."""

    def __init__(self, job: Job, cluster: Cluster, constants: Constants) -> None:
        self.job, self._c = job, constants
        self._stages = stages = _Stages(LayerTimer(job, cluster, constants))
        self._pipeline = self._pipeline_seconds(_transfer_seconds(job, cluster, constants))
        self._data, self._hidden_data = _data_seconds(job, cluster, constants, stages)
        self._optimizer = _optimizer_seconds(job, cluster, constants)
        jitter = constants["slowdown_per_doubling"] * math.log2(job.layout.world_size)
        self._steady = self._pipeline + self._data + self._optimizer
        self.seconds = (1 + jitter) * self._steady

    @classmethod
    def of(cls, job: Job, cluster: Cluster, constants: Constants) -> "Step":
        """Price a job."""
        return cls(job, cluster, constants)

    def _pipeline_seconds(self, transfer: float) -> float:
        """All forward and backward passes, where sending to the next stage takes `transfer`."""
        layout, stages = self.job.layout, self._stages
        slack = self._c["pipeline_slack"] if layout.pipeline > 1 else 1.0
        return slack * schedule.step_seconds(
            stages.forward, stages.backward, layout.pipeline, layout.micro_batches, transfer
        )

    @cached_property
    def parts(self) -> dict[str, float]:
        """Seconds of the step by activity."""
        parts = self._stages.slowest_rank_parts(self.job.layout.micro_batches)
        at_once = self._pipeline_seconds(transfer=0.0)
        parts["pipeline bubble"] = at_once - sum(parts.values())
        parts["pipeline transfers"] = self._pipeline - at_once
        parts["gradients and weights"] = self._data
        parts["optimizer"] = self._optimizer
        parts["jitter"] = self.seconds - self._steady
        return parts

    @cached_property
    def hidden(self) -> dict[str, float]:
        """Communication that runs beside computation."""
        hidden = self._stages.hidden(self.job.layout.micro_batches)
        return hidden | {"gradients and weights": self._hidden_data}

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """Throughput of one GPU."""
        layout = self.job.layout
        sequences = layout.micro_batches * self.job.micro_batch * layout.data
        return sequences * self.job.sequence_length / self.seconds / layout.world_size

    @property
    def tflops_per_gpu(self) -> float:
        """Model TFLOP/s: the model's own work (model/flops.py), without recomputation."""
        flops = self.job.model.flops_per_token(self.job.sequence_length)
        return flops * self.tokens_per_second_per_gpu / 1e12


class _Stages:
    """Forward and backward seconds of every pipeline stage."""

    def __init__(self, timer: LayerTimer) -> None:
        self.timer, self.job, self.model = timer, timer.job, timer.model
        self.concurrency = timer.c["concurrency"]
        self.kinds: dict[tuple[bool, bool, bool], tuple[Pass, Pass]] = {}
        split = self.job.layout.stage_layers
        first = [sum(split[:stage]) for stage in range(len(split))]
        self.layers = [list(range(f, f + n)) for f, n in zip(first, split, strict=True)]
        self.last = self._after_last_layer()
        self.forward = [self._sum(layers, 0) for layers in self.layers]
        self.backward = [self._sum(layers, 1) for layers in self.layers]
        self.forward[-1] += self.last[0]
        self.backward[-1] += self.last[1]

    def layer(self, layer: int) -> tuple[Pass, Pass]:
        """The passes of a layer; layers of one kind cost the same."""
        sent = layer < self.job.offload_layers
        kind = self.model.is_sparse(layer), self.model.has_window(layer), sent
        if kind not in self.kinds:
            self.kinds[kind] = self.timer.layer(layer)
        return self.kinds[kind]

    def _sum(self, layers: list[int], which: int) -> float:
        return sum(self.layer(layer)[which].total(self.concurrency) for layer in layers)

    def _after_last_layer(self) -> tuple[float, float]:
        """Seconds of logits and loss; multi-token prediction adds layers and logits."""
        logits, extra = self.timer.logits(), self.model.predicted_layers
        forward, backward = self.layer(self.model.num_layers - 1)
        return (
            logits + extra * (forward.total(self.concurrency) + logits),
            2 * logits + extra * (backward.total(self.concurrency) + 2 * logits),
        )

    def slowest_rank_parts(self, micro_batches: int) -> dict[str, float]:
        """Seconds of one step on the pipeline rank that works most, without waiting."""
        p = self.job.layout.pipeline
        both = [f + b for f, b in zip(self.forward, self.backward, strict=True)]
        rank = max(range(p), key=lambda rank: sum(both[rank::p]))
        passes = [
            one for stage in self.layers[rank::p] for layer in stage for one in self.layer(layer)
        ]
        names = [field.name for field in fields(Pass) if field.name != "launch"]
        parts = {name: micro_batches * sum(getattr(o, name) for o in passes) for name in names}
        waits = sum(o.total(self.concurrency) - o.device - o.proxies for o in passes)
        parts["launch"] = micro_batches * waits
        parts["logits"] = micro_batches * sum(self.last) if rank == p - 1 else 0.0
        return {_NAMES.get(name, name): seconds for name, seconds in parts.items()}

    def hidden(self, micro_batches: int) -> dict[str, float]:
        """Communication that runs beside computation, on a rank of the average stage."""
        c, timer = self.timer.c, self.timer
        layers = self.model.num_layers / self.job.layout.pipeline * micro_batches
        sparse = self.model.sparse_layers / self.model.num_layers
        share = c["exchange_hidden"] if self.job.overlap_exchange else 0.0
        exchange = timer.load * (timer.exchange_seconds() + timer.proxy_seconds())
        tensor = 5 * timer.tensor_seconds(sparse > 0.5) * (1 - c["tensor_exposed"])
        context = sum(timer.context_seconds()) * (1 - timer.context_shown)
        return {
            "token exchange": layers * sparse * 4 * share * exchange,
            "tensor parallelism": layers * tensor,
            "context parallelism": layers * context,
        }


_NAMES = {
    "gemm": "matrix products",
    "elementwise": "element-wise",
    "exchange": "token exchange",
    "proxies": "tokens sent by the host",
    "tensor": "tensor parallelism",
    "context": "context parallelism",
    "host": "activations to the host",
    "launch": "kernel launches",
}


def _transfer_seconds(job: Job, cluster: Cluster, c: Constants) -> float:
    layout = job.layout
    if layout.pipeline == 1:
        return 0.0
    moved = job.micro_batch_tokens / job.sequence_ranks * job.model.hidden_size * 2
    stride = layout.world_size // layout.pipeline
    return moved / network.rate(layout.pipeline, stride, cluster, c) + _TRANSFER_LATENCY


def local_parameters(job: Job, rank: int = 0) -> tuple[int, int]:
    """Dense and expert parameters of a pipeline rank, taken as one with an embedding."""
    layout, model = job.layout, job.model
    count = sum(layout.stage_layers[rank :: layout.pipeline])
    sparse_count = count
    if model.sparse_layers < model.num_layers:
        sparse_count = round(count * model.sparse_layers / model.num_layers)
    ranks = layout.tensor, layout.expert, layout.expert_tensor
    sparse_layer = _layer_elements(model, model.num_layers - 1, *ranks)
    dense_layer = _layer_elements(model, 0, *ranks)
    dense = sparse_count * sparse_layer[0] + (count - sparse_count) * sum(dense_layer)
    embedding = model.vocab_size // layout.tensor * model.hidden_size
    return dense + embedding, sparse_count * sparse_layer[1]


@lru_cache(maxsize=4096)
def _layer_elements(
    model: Architecture, layer: int, tensor: int, expert: int, expert_tensor: int
) -> tuple[int, int]:
    return model.local_elements(layer, tensor, expert, expert_tensor)


def _data_seconds(job: Job, cluster: Cluster, c: Constants, stages: _Stages) -> tuple[float, float]:
    """Seconds of reducing gradients and gathering weights: exposed, and hidden.

    With overlap the last micro-batch's backward hides the first and its forward hides the second,
    except for a share that starts or ends alone. FSDP does both for every micro-batch.
    """
    layout, p = job.layout, job.layout.pipeline
    dense, sparse = local_parameters(job)
    shared = _ring(dense, layout.data * layout.context, layout.tensor, cluster, c)
    if job.model.num_experts:
        stride = layout.expert * layout.expert_tensor
        shared += _ring(sparse, layout.expert_data, stride, cluster, c)
    reduce, gather = job.gradient_bytes * shared, 2 * shared
    times = layout.micro_batches if job.fully_sharded else 1
    whole = times * (reduce + gather * (2 if job.fully_sharded else 1))
    if not job.overlap_data:
        return whole, 0.0
    alone = c["data_exposed"]
    behind_backward = (1 - alone) * (reduce + (gather if job.fully_sharded else 0.0))
    visible = alone * whole + times * (
        max(0.0, behind_backward - sum(stages.backward[0::p]))
        + max(0.0, (1 - alone) * gather - sum(stages.forward[0::p]))
    )
    return visible, whole - visible


def _ring(elements: int, ranks: int, stride: int, cluster: Cluster, c: Constants) -> float:
    """Seconds of one byte of each element through a reduce-scatter or all-gather."""
    if ranks == 1 or not elements:
        return 0.0
    return elements * (ranks - 1) / ranks / network.rate(ranks, stride, cluster, c)


def _optimizer_seconds(job: Job, cluster: Cluster, c: Constants) -> float:
    dense, sparse = local_parameters(job)
    layout, own = job.layout, float(dense + sparse)
    if job.distributed_optimizer:
        own = dense / (layout.data * layout.context) + sparse / layout.expert_data
    here = own * (1 - job.offload)
    moved = here * (_ADAM_BYTES - 2 * (8 - job.moment_bytes)) + (dense + sparse) * _NORM_BYTES
    on_device = moved / (1e9 * cluster.memory_gb_per_s * c["memory"])
    return on_device + _host_seconds(own * job.offload, job, cluster)


def _host_seconds(weights: float, job: Job, cluster: Cluster) -> float:
    """Seconds of the CPU's updates: rules of thumb for a rank's share, not measured."""
    link = 1e9 * HOST_LINK_GB_PER_S[cluster.host]
    copies = weights * (_TO_HOST_BYTES + _FROM_HOST_BYTES) / link
    updates = weights * _HOST_ADAM_BYTES / (1e9 * HOST_MEMORY_GB_PER_S[cluster.host])
    return max(copies, updates) if job.offload_overlap else copies + updates
