"""Weights, gradients and optimizer of a rank: counts that add up, for all sizes and layouts."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_qwen3.config import load
from megatron_qwen3.model.flops import flops_per_token, parameter_count
from megatron_qwen3.planner.activations import logits_bytes
from megatron_qwen3.planner.buffers import Buffer, BufferedWeight
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.state import State
from megatron_qwen3.presets import PRESETS

SIZES = [name for name in PRESETS if name.startswith("qwen3-")]


def job_of(name, world, *overrides):
    base = [f"model.preset={name}", "train.steps=1", "train.global_batch=1024"]
    return Job.of(load([], [*base, *overrides]), world)


@pytest.mark.parametrize("name", SIZES)
def test_one_rank_holds_every_parameter_and_eighteen_bytes_for_each(name):
    job = job_of(name, 1)
    job = dataclasses.replace(job, distributed_optimizer=False)
    state, count = (
        State.of(job, 0),
        parameter_count(load([], [f"model.preset={name}", "train.steps=1"]).model),
    )
    assert state.parameters == count
    bytes_held = (state.weight_bytes, state.gradient_bytes, state.optimizer_bytes)
    assert bytes_held == (2 * count, 4 * count, 12 * count)


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-8b", "qwen3-30b-a3b"])
@pytest.mark.parametrize("pipeline", [1, 4])
def test_a_reward_models_stages_hold_its_parameters_once_and_no_logits(name, pipeline):
    settings = [f"model.preset={name}", "train.steps=1", "run.mode=reward"]
    of = load([], settings).model
    job = job_of(name, pipeline, "run.mode=reward", f"parallel.pipeline={pipeline}")
    held = sum(State.of(job, rank).parameters for rank in range(pipeline))
    assert held == parameter_count(of)
    assert job.model.flops_per_token(4096) == pytest.approx(flops_per_token(of, 4096))
    positions, in_float32 = job.micro_batch_tokens, 4
    assert logits_bytes(job) == in_float32 * positions * of.hidden_size


@pytest.mark.parametrize("name", SIZES)
def test_data_ranks_together_hold_the_optimizer_once(name):
    job = job_of(name, 4)
    state = State.of(job, 0)
    count = parameter_count(load([], [f"model.preset={name}", "train.steps=1"]).model)
    assert sum(state.optimizer_bytes_of(r, r) for r in range(4)) == 12 * count


@pytest.mark.parametrize("name", SIZES)
def test_pipeline_stages_together_hold_the_model_once(name):
    job = job_of(name, 4, "parallel.pipeline=4")
    model = job.model
    total = sum(State.of(job, rank).parameters for rank in range(4))
    second_embedding = model.vocab_size * model.hidden_size if model.tie_embeddings else 0
    assert total == second_embedding + sum(
        matrix.local_elements(1, 1, 1)
        for layer in range(model.num_layers)
        for matrix in model.layer_matrices(layer)
    ) + model.hidden_size * (1 + model.vocab_size * (1 if model.tie_embeddings else 2))


@given(
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=40),
    alone=st.sets(st.integers(0, 39)),
    ranks=st.integers(1, 24),
    bucket=st.sampled_from([1, 1000, 10_000, math.inf]),
)
def test_every_element_of_a_buffer_has_one_owner_and_buckets_follow_one_another(
    sizes, alone, ranks, bucket
):
    weights = [BufferedWeight(str(i), size, i in alone) for i, size in enumerate(sizes)]
    buffer = Buffer.of(weights, ranks, bucket)
    assert sum(buffer.owned(rank) for rank in range(ranks)) == sum(sizes)
    assert buffer.most_owned == max(buffer.owned(rank) for rank in range(ranks))
    edges = [0, *(end for _, end in buffer.buckets)]
    assert [start for start, _ in buffer.buckets] == edges[:-1]
    assert all((end - start) % math.lcm(ranks, 128) == 0 for start, end in buffer.buckets)
    assert all(start % 64 == 0 for start, _ in buffer.spans)
    assert buffer.elements < sum(sizes) + len(sizes) * (64 + math.lcm(ranks, 128))
