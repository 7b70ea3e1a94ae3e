"""The planner's bytes of weights, gradients and optimizer against allocations of real ranks."""

import pytest
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.state import State


def config_of(*overrides):
    return load([], ["train.steps=1", "train.global_batch=8", *overrides])


def allocated(overrides):
    """Place in the groups, and parameters and bytes that the engine of this rank holds."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    from megatron_qwen3.parallel import runtime
    from megatron_qwen3.training.engine import Engine
    from megatron_qwen3.training.optim import _adams, _parts, state_tensors

    config = config_of(*overrides)
    engine = Engine(config, runtime.start(config))
    state_tensors(engine.optimizer)  # which makes the moments
    buffers = [
        b for chunk in engine.chunks for b in (*chunk.buffers, *chunk.expert_parallel_buffers)
    ]
    parameters = [p for model in engine.model.chunks for p in model.parameters()]
    weights = sum(p.numel() * p.element_size() for p in parameters)
    if config.optim.distributed:
        weights = sum(b.param_data.numel() * b.param_data.element_size() for b in buffers)
    moments = [
        t
        for adam in _adams(engine.optimizer)
        for state in adam.state.values()
        for name, t in state.items()
        if name != "step"
    ]
    masters = []
    for part in _parts(engine.optimizer):
        if isinstance(part, DistributedOptimizer):
            masters += [t for group in part.shard_fp32_from_float16_groups for t in group]
        elif config.train.precision == "bf16":
            masters += [t for group in part.fp32_from_float16_groups for t in group]
    assert all(t.dtype == torch.float32 for t in moments + masters)
    return {
        "pipeline_rank": parallel_state.get_pipeline_model_parallel_rank(),
        "data_rank": parallel_state.get_data_parallel_rank(with_context_parallel=True),
        "expert_data_rank": parallel_state.get_expert_data_parallel_rank(),
        "parameters": sum(p.numel() for p in parameters),
        "weight_bytes": weights,
        "gradient_bytes": sum(b.grad_data.numel() * b.grad_data.element_size() for b in buffers),
        "optimizer_bytes": 4 * sum(t.numel() for t in moments + masters),
    }


MOE, DENSE = "model.preset=tiny-moe", "model.preset=tiny-dense"
FLOAT32 = "train.precision=fp32"
LAYOUTS = {
    "moe-dp3": (3, [MOE, "model.vocab_size=517", "train.global_batch=9"]),
    "moe-tp2-pp2-ep2": (
        8,
        [MOE, "parallel.tensor=2", "parallel.pipeline=2", "parallel.expert=2"],
    ),
    "moe-pp2-vpp2-ep2": (
        4,
        [MOE, "parallel.pipeline=2", "parallel.virtual_pipeline=2", "parallel.expert=2"],
    ),
    "moe-tp2-etp2-fp32": (
        4,
        [MOE, "parallel.tensor=2", "parallel.expert_tensor=2", FLOAT32],
    ),
    "dense-tied-pp2-uneven": (
        4,
        [DENSE, "parallel.pipeline=2", "parallel.pipeline_layers=[3, 1]"],
    ),
    "dense-cp2-dp2": (4, [DENSE, "parallel.context=2"]),
    "dense-cp2-tp2-dp3-fp32": (
        12,
        [DENSE, "parallel.context=2", "parallel.tensor=2", "train.global_batch=9", FLOAT32],
    ),
    "moe-cp2-ep4-pp2": (
        8,
        [MOE, "parallel.context=2", "parallel.expert=4", "parallel.pipeline=2"],
    ),
    "dense-cp2-without-distributed-optimizer": (
        4,
        [DENSE, "parallel.context=2", "optim.distributed=false"],
    ),
    "reward-tp2-pp2": (
        4,
        [DENSE, "run.mode=reward", "parallel.tensor=2", "parallel.pipeline=2"],
    ),
    "dense-without-distributed-optimizer": (2, [DENSE, "optim.distributed=false"]),
    "dense-without-overlap": (4, [DENSE, "parallel.tensor=2", "parallel.overlap=false"]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_state_is_what_real_ranks_allocate_to_the_byte(name):
    world, overrides = LAYOUTS[name]
    job = Job.of(config_of(*overrides), world)
    for found in run_ranks(allocated, world, overrides):
        state = State.of(job, found["pipeline_rank"])
        ranks = found["data_rank"], found["expert_data_rank"]
        assert {
            "parameters": state.parameters,
            "weight_bytes": state.weight_bytes,
            "gradient_bytes": state.gradient_bytes,
            "optimizer_bytes": state.optimizer_bytes_of(*ranks),
        } == {name: found[name] for name in found if not name.endswith("_rank")}
        assert state.optimizer_bytes_of(*ranks) <= state.optimizer_bytes
