"""Sizes of everything that each rank of a run would hold, without its memory or the other ranks.

    roles = dry_run(config, Layout.of(config, world_size=256))
    roles[0].ranks, roles[0].weight_bytes, roles[0].optimizer_bytes

It builds training's own engine on torch's meta device, which has shapes but no bytes, under a fake
process group of all ranks. Model, gradient buffers and distributed optimizer are the real ones, so
sizes are exact, with megatron-core's padding. One engine per pipeline rank is enough: tensor and
expert ranks split evenly, which the checks of settings guarantee, and megatron-core's own function
tells each data rank's part of the optimizer.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_qwen3.cpu import redirect
from megatron_qwen3.parallel import runtime
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.parallel.mcore import DistributedOptimizer, Range
from megatron_qwen3.settings import Config, OptimConfig
from megatron_qwen3.settings_fp8 import Fp8Config
from megatron_qwen3.settings_overlap import OverlapConfig
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.model import Model
from megatron_qwen3.training.optim import state_tensors


@dataclass(frozen=True)
class Tensor:
    """One weight of a rank, by megatron-core's name; shape: of the rank's part."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Role:
    """Ranks that hold equally much: a pipeline rank, or some of its data ranks.

    ranks             global ranks
    layers            of the whole model, counted from 0, one tuple per model chunk
    parameters        number of weights of this rank; expert_parameters of them are in experts
    weight_bytes      of the flat buffers of weights, padding included
    gradient_bytes    of the flat buffers of float32 gradients, padding included
    optimizer_bytes   Adam's two moments and, where the weights are not float32, a float32 copy
    reference_bytes   weights of the reference model of rl.kl
    """

    pipeline_rank: int
    ranks: tuple[int, ...]
    layers: tuple[tuple[int, ...], ...]
    has_embedding: bool
    has_logits: bool
    parameters: int
    expert_parameters: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    reference_bytes: int
    tensors: tuple[Tensor, ...]

    @property
    def total_bytes(self) -> int:
        """Everything that stays from step to step."""
        own = self.weight_bytes + self.gradient_bytes + self.optimizer_bytes
        return own + self.reference_bytes


def dry_run(config: Config, layout: Layout) -> list[Role]:
    """Every distinct role of the run, in the order of its first rank.

    Layers are torch's: those of Transformer Engine, which needs a GPU, have the same weights. Bytes
    of optimizer state that is narrower than float32, or on the host, are calculated. Weights that
    would be kept in FP8 count as bf16.
    """
    optim, usual = config.optim, OptimConfig()
    moments = {"fp32": 4, "bf16": 2}
    narrower = (4 - moments[optim.first_moment]) + (4 - moments[optim.second_moment])
    share = (1 - narrower / 12) * (1 - optim.offload)  # of a float32 weight and its two moments
    plain = {n: getattr(usual, n) for n in ("adam", "first_moment", "second_moment", "offload")}
    config = replace(
        config,
        model=replace(config.model, kind="torch"),
        fp8=Fp8Config(),
        overlap=OverlapConfig(),
        optim=replace(optim, **plain, offload_overlap=False),
    )
    roles = [role for rank in range(layout.pipeline) for role in _roles(config, layout, rank)]
    return [replace(role, optimizer_bytes=round(share * role.optimizer_bytes)) for role in roles]


def _roles(config: Config, layout: Layout, pipeline_rank: int) -> Iterator[Role]:
    """The roles of one pipeline rank, which differ only in their part of the optimizer."""
    stage_ranks = layout.world_size // layout.pipeline
    first = pipeline_rank * stage_ranks
    with _pretending_to_be(first, config, layout):
        engine = Engine(config, layout)
        common = _common(engine, layout, pipeline_rank)
        common["reference_bytes"] = _reference_bytes(config, layout)
        ranks_by_bytes = defaultdict(list)
        for place, size in enumerate(_optimizer_bytes(engine, layout, stage_ranks)):
            ranks_by_bytes[size].append(first + place)
    for size, ranks in ranks_by_bytes.items():
        yield Role(ranks=tuple(ranks), optimizer_bytes=size, **common)


@contextmanager
def _pretending_to_be(rank: int, config: Config, layout: Layout) -> Iterator[None]:
    """Fake process groups of all ranks, in which this process is `rank`."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world_size)
    try:
        runtime.build_groups(config, layout)
        with redirect.on_meta():
            yield
    finally:
        runtime.stop()


def _common(engine: Engine, layout: Layout, pipeline_rank: int) -> dict[str, Any]:
    """The fields of Role that all data ranks of a pipeline rank share: all but three."""
    named = [
        (f"chunk{i}.{name}" if layout.virtual > 1 else name, p)
        for i, model in enumerate(engine.model.chunks)
        for name, p in model.named_parameters()
    ]
    weights = [p for _, p in named]
    buffers = [b for c in engine.chunks for b in (*c.buffers, *c.expert_parallel_buffers)]
    # Only the distributed optimizer moves weights into flat buffers.
    flat = [b.param_data for b in buffers] if engine.config.optim.distributed else weights
    return {
        "pipeline_rank": pipeline_rank,
        "layers": tuple(
            tuple(layer.layer_number - 1 for layer in model.decoder.layers)
            for model in engine.model.chunks
        ),
        "has_embedding": any(model.pre_process for model in engine.model.chunks),
        "has_logits": any(model.post_process for model in engine.model.chunks),
        "parameters": sum(p.numel() for p in weights),
        "expert_parameters": sum(p.numel() for n, p in named if ".experts." in n),
        "weight_bytes": sum(map(_bytes, flat)),
        "gradient_bytes": sum(_bytes(buffer.grad_data) for buffer in buffers),
        "tensors": tuple(
            Tensor(name, tuple(p.shape), str(p.dtype).removeprefix("torch.")) for name, p in named
        ),
    }


def _reference_bytes(config: Config, layout: Layout) -> int:
    """Bytes of a second model in the policy's layout, without gradients."""
    if config.run.mode != "rl" or not config.rl.kl.coefficient:
        return 0
    chunks = Model(config, layout).chunks
    return sum(_bytes(weight) for chunk in chunks for weight in chunk.parameters())


def _optimizer_bytes(engine: Engine, layout: Layout, stage_ranks: int) -> list[int]:
    """Bytes of optimizer state of each rank of the pipeline rank, in rank order."""
    own_bytes = sum(map(_bytes, state_tensors(engine.optimizer)))
    if not engine.config.optim.distributed:
        return [own_bytes] * stage_ranks
    dense = [_held(engine, "buffers", d) for d in range(layout.data * layout.context)]
    sparse = [_held(engine, "expert_parallel_buffers", d) for d in range(layout.expert_data)]
    # Tensor ranks are counted first, then context and data ranks; experts likewise.
    held = [
        dense[rank // layout.tensor] + sparse[rank // (layout.expert_tensor * layout.expert)]
        for rank in range(stage_ranks)
    ]
    bytes_each, rest = divmod(own_bytes, held[0])
    assert not rest, "the engine's own share differs from megatron-core's ranges"
    return [bytes_each * weights for weights in held]


def _held(engine: Engine, kind: str, data_rank: int) -> int:
    """Number of weights in buffers of a kind whose optimizer state a data rank keeps."""
    held = 0
    for buffer in (buffer for chunk in engine.chunks for buffer in getattr(chunk, kind)):
        for bucket in buffer.buckets:
            size = bucket.grad_data.numel() // buffer.data_parallel_world_size
            start = bucket.offset + data_rank * size
            parts = DistributedOptimizer._build_model_gbuf_param_range_map(
                buffer.param_index_map, Range(start, start + size), bucket.offset
            )
            held += sum(part["param"].size for part in parts.values())
    return held


def _bytes(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()
