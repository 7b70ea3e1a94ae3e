"""A dry run's numbers for each rank are those of a real rank, to the byte."""

import pytest
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.training.dry_run import dry_run

LAYOUTS = {
    "moe-tp2-pp2-ep2": (8, "tiny-moe", ["parallel.tensor=2", "parallel.pipeline=2"]
        + ["parallel.expert=2"]),
    "dense-dp3-odd-width": (3, "tiny-dense", ["model.hidden_size=72", "model.head_dim=18"]),
    "dense-pp2-vpp2-fp32": (4, "tiny-dense", ["parallel.pipeline=2"]
        + ["parallel.virtual_pipeline=2", "train.precision=fp32"]),
    "moe-etp2-plain-optimizer": (4, "tiny-moe", ["parallel.tensor=2"]
        + ["parallel.expert_tensor=2", "optim.distributed=false"]),
}  # fmt: skip


def held(overrides):
    """(weights, bytes of weights, of gradients, of the optimizer) of a real rank."""
    from megatron_qwen3.parallel import runtime
    from megatron_qwen3.training.engine import Engine
    from megatron_qwen3.training.optim import state_tensors

    config = load([], overrides)
    engine = Engine(config, runtime.start(config))
    weights = [p for model in engine.model.chunks for p in model.parameters()]
    buffers = [b for c in engine.chunks for b in (*c.buffers, *c.expert_parallel_buffers)]
    flat = [b.param_data for b in buffers] if config.optim.distributed else weights
    sizes = (flat, [b.grad_data for b in buffers], state_tensors(engine.optimizer))
    return (sum(p.numel() for p in weights), *(sum(x.nbytes for x in part) for part in sizes))


@pytest.mark.parametrize("case", LAYOUTS)
def test_dry_run_weighs_real_ranks_to_the_byte(case):
    world_size, preset, layout = LAYOUTS[case]
    overrides = [f"model.preset={preset}", "train.steps=1", "train.global_batch=24", *layout]
    config = load([], overrides)
    real = run_ranks(held, world_size, overrides)
    for role in dry_run(config, Layout.of(config, world_size)):
        told = (role.parameters, role.weight_bytes, role.gradient_bytes, role.optimizer_bytes)
        for rank in role.ranks:
            assert told == real[rank], f"rank {rank}"
