"""The planner's bytes of sampling and of a reference against allocations of a model of ours."""

import pytest
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.planner import moments
from megatron_qwen3.planner.job import Job

PROMPTS, SAMPLES, PROMPT, NEW = 2, 4, 200, 24
GROWTH = 16  # places: caches are to grow once
DENSE = ["model.preset=tiny-dense", "model.num_layers=6", "model.vocab_size=512"]
FP32 = "train.precision=fp32"
LAYOUTS = [
    pytest.param(1, [FP32], id="one"),
    pytest.param(2, [FP32, "parallel.pipeline=2"], id="pp2"),
    pytest.param(1, [], id="bf16", marks=pytest.mark.slow),
    pytest.param(2, [FP32, "parallel.tensor=2"], id="tp2", marks=pytest.mark.slow),
]


def config_of(*overrides):
    asked = [f"rollouts.prompts={PROMPTS}", f"rollouts.samples={SAMPLES}", "rollouts.held_out=0"]
    asked += [f"rollouts.max_new_tokens={NEW}", f"data.sequence_length={PROMPT + NEW}"]
    asked += ["rollouts.tasks=[{name='a', path='gym:chain_sum'}]", "run.mode=rl"]
    return load([], ["train.steps=1", *DENSE, *asked, *overrides])


def most_while_sampling(overrides):
    """Bytes of this rank's tensors while it samples, without the weights; the pipeline rank."""
    from live_memory import LiveMemory

    from megatron_qwen3.generate import cache
    from megatron_qwen3.generate.engine import Generator
    from megatron_qwen3.generate.sampling import Sampling
    from megatron_qwen3.parallel import runtime
    from megatron_qwen3.training.model import Model

    cache._LEAST_GROWTH = GROWTH
    config = config_of(*overrides)
    model = Model(config, runtime.start(config))
    generator = Generator(model)
    with LiveMemory() as memory:
        prompts = [[n + 1] * PROMPT for n in range(PROMPTS)]
        generator.generate(prompts, Sampling(), NEW, samples=SAMPLES)
    return generator.pipeline.rank(), memory.peak_bytes


@pytest.mark.parametrize(("world", "overrides"), LAYOUTS)
def test_caches_and_choosing_are_what_sampling_holds_within_12_percent(world, overrides):
    config = config_of(*overrides)
    job = Job.of(config, world)
    for rank, found in run_ranks(most_while_sampling, world, overrides):
        cache = moments.cache_bytes(job, rank, config.rollouts)
        choosing = moments.choosing_bytes(job, rank, config.rollouts)
        assert choosing < 0.2 * cache
        assert cache + choosing == pytest.approx(found, rel=0.12), rank
