"""A dry run weighs the tensors of training: in closed form, for every size and layout."""

import contextlib
import dataclasses
import functools
import io
import json
import math

import pytest

from megatron_qwen3.cli import scaling_study
from megatron_qwen3.config import load
from megatron_qwen3.model.flops import parameter_count
from megatron_qwen3.parallel.layout import Layout, smallest_world
from megatron_qwen3.planner import moments
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.state import State
from megatron_qwen3.training.dry_run import dry_run

DENSE = ("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "qwen3-14b", "qwen3-32b")
SPARSE = ("qwen3-30b-a3b", "qwen3-235b-a22b")


@functools.cache
def built(config, layout):
    """Both tests of a layout look at one build."""
    return dry_run(config, layout)


def setup(preset, world_size, **parallel):
    overrides = [f"model.preset={preset}", "train.steps=1"]
    precision = parallel.pop("precision", "bf16")
    distributed = str(parallel.pop("distributed", True)).lower()
    overrides += [f"train.precision={precision}", f"optim.distributed={distributed}"]
    overrides += [f"parallel.{name}={value}" for name, value in parallel.items()]
    overrides += [f"train.global_batch={world_size * parallel.get('pipeline', 1)}"]
    config = load([], overrides)
    return config, Layout.of(config, world_size)


def weights_of_a_rank(model, layout, layers, has_embedding, has_logits):
    """(outside experts, in experts): the matrices of the paper, cut as Megatron cuts them."""
    h, d, t = model.hidden_size, model.head_dim, layout.tensor
    attention = 2 * (model.num_attention_heads + model.num_query_groups) * d * h // t
    norms = 2 * h + 2 * d
    if model.num_experts:
        mlp = model.num_experts * h  # the router, on every rank
        parts = layout.expert * layout.expert_tensor
        expert = model.num_experts * 3 * h * model.expert_ffn_hidden_size // parts
    else:
        mlp, expert = 3 * h * model.ffn_hidden_size // t, 0
    is_shared = model.tie_embeddings and has_embedding and has_logits
    embeddings = (has_embedding + has_logits - is_shared) * (model.vocab_size // t) * h
    dense = layers * (attention + norms + mlp) + embeddings + has_logits * h
    return dense, layers * expert


LAYOUTS = [
    *((preset, 1, {}) for preset in DENSE + SPARSE),
    *((preset, 64, {"tensor": 4, "pipeline": 2}) for preset in DENSE + SPARSE),
    *((preset, 16, {"tensor": 2, "pipeline": 4, "precision": "fp32"}) for preset in DENSE),
    *((preset, 16, {"expert": 8, "pipeline": 2, "precision": "fp32"}) for preset in SPARSE),
    *((preset, 64, {"tensor": 4, "expert": 16, "pipeline": 4}) for preset in SPARSE),
    *((preset, 32, {"expert": 4, "expert_tensor": 2, "tensor": 2}) for preset in SPARSE),
    ("qwen3-30b-a3b", 32, {"tensor": 4, "expert": 2, "expert_tensor": 4, "pipeline": 4}),
    ("qwen3-235b-a22b", 256, {"tensor": 4, "expert": 8, "pipeline": 8}),
    ("qwen3-8b", 24, {"tensor": 2, "pipeline": 4}),  # three data ranks: no power of two
    ("qwen3-8b", 32, {"tensor": 2, "pipeline": 4, "virtual_pipeline": 3}),
    ("qwen3-0.6b", 12, {"pipeline": 2, "distributed": False}),
    ("qwen3-8b", 24, {"tensor": 2, "context": 4}),  # three data ranks of eight each
    ("qwen3-30b-a3b", 32, {"tensor": 2, "context": 2, "expert": 8, "pipeline": 2}),
    ("qwen3-0.6b", 8, {"context": 2, "distributed": False}),
]


def name_of(case):
    preset, world_size, parallel = case
    return "-".join([preset, str(world_size), *(f"{k}{v}" for k, v in parallel.items())])


RL = ("run.mode=rl", "rollouts.tasks=[{name='a', path='gym:chain_sum'}]", "train.steps=1")


@pytest.mark.parametrize("preset", ["tiny-dense", "tiny-moe"])
def test_a_reference_weighs_what_the_planner_says_and_the_policy_what_it_weighs_alone(preset):
    sizes = [f"model.preset={preset}", "parallel.tensor=2", "parallel.pipeline=2"]
    alone = load([], [*sizes, "train.steps=1"])
    config = load([], [*sizes, *RL, "rl.kl.coefficient=0.1"])
    layout = Layout.of(config, 4)
    job = Job.of(config, 4)
    for own, role in zip(dry_run(alone, layout), dry_run(config, layout), strict=True):
        expected = moments.reference_bytes(config, job, role.pipeline_rank)
        assert role.reference_bytes == expected > 0 and own.reference_bytes == 0
        assert role.total_bytes == own.total_bytes + expected


@pytest.mark.parametrize("case", LAYOUTS, ids=name_of)
def test_ranks_hold_what_the_matrices_say_and_every_weight_has_one_owner(case):
    preset, world_size, parallel = case
    config, layout = setup(preset, world_size, **parallel)
    roles = built(config, layout)
    assert sorted(rank for role in roles for rank in role.ranks) == list(range(world_size))
    stored = 2 if config.train.precision == "bf16" else 4
    state = 12 if stored == 2 else 8  # Adam's moments, and a float32 weight where there is none
    model, data = config.model, layout.data * layout.context
    padding = 128 * data * layout.expert_data
    for stage in range(layout.pipeline):
        same = [role for role in roles if role.pipeline_rank == stage]
        layers = sum(map(len, same[0].layers))
        ends = same[0].has_embedding, same[0].has_logits
        assert ends == (stage == 0, stage == layout.pipeline - 1)
        dense, expert = weights_of_a_rank(model, layout, layers, *ends)
        for role in same:
            assert (role.parameters, role.expert_parameters) == (dense + expert, expert)
            assert 0 <= role.weight_bytes - stored * role.parameters < stored * padding
            assert role.gradient_bytes == role.weight_bytes // stored * 4
        owned = sum(role.optimizer_bytes * len(role.ranks) for role in same)
        copies_dense = layout.tensor * (1 if config.optim.distributed else data)
        assert owned == state * (
            dense * copies_dense + expert * layout.expert * layout.expert_tensor
        )


@pytest.mark.parametrize("case", LAYOUTS, ids=name_of)
def test_the_planner_says_the_same_to_the_byte(case):
    preset, world_size, parallel = case
    config, layout = setup(preset, world_size, **parallel)
    states = [State.of(Job.of(config, world_size), stage) for stage in range(layout.pipeline)]
    for role in built(config, layout):
        state = states[role.pipeline_rank]
        assert (role.parameters, role.weight_bytes, role.gradient_bytes) == (
            state.parameters,
            state.weight_bytes,
            state.gradient_bytes,
        )
        for rank in role.ranks:
            place = rank % (world_size // layout.pipeline)
            data_rank = place // layout.tensor
            expert_data_rank = place // (layout.expert * layout.expert_tensor)
            assert role.optimizer_bytes == state.optimizer_bytes_of(data_rank, expert_data_rank)


@pytest.mark.parametrize("preset", DENSE + SPARSE)
def test_one_rank_holds_the_released_model(preset):
    config, layout = setup(preset, 1)
    (role,) = built(config, layout)
    assert role.parameters == parameter_count(config.model)
    assert role.parameters == sum(math.prod(tensor.shape) for tensor in role.tensors)


def test_layers_are_those_of_the_layout_chunk_by_chunk():
    config, layout = setup("qwen3-8b", 8, tensor=2, pipeline=4, virtual_pipeline=3)
    roles = {role.pipeline_rank: role for role in dry_run(config, layout)}
    in_order = [roles[rank].layers[chunk] for chunk in range(3) for rank in range(4)]
    assert tuple(map(len, in_order)) == layout.stage_layers
    assert [layer for stage in in_order for layer in stage] == list(range(36))


def dry_run_command(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = scaling_study.main(["dry-run", *arguments])
    return status, out.getvalue(), err.getvalue()


def test_command_prints_json_with_every_role_and_shape():
    status, out, _ = dry_run_command("model.preset=tiny-moe", "parallel.pipeline=2", "--json")
    report = json.loads(out)
    assert (status, report["world_size"]) == (0, 2)
    first, last = report["roles"]
    shapes = {tensor["name"]: tensor["shape"] for tensor in first["tensors"]}
    assert shapes["embedding.word_embeddings.weight"] == [512, 64]
    assert (first["has_logits"], last["has_logits"]) == (False, True)
    parts = ("weight_bytes", "gradient_bytes", "optimizer_bytes")
    assert last["total_bytes"] == sum(last[part] for part in parts)


def test_command_prints_a_table_with_the_fewest_ranks_that_hold_the_layout():
    config = load([], ["model.preset=tiny-moe", "train.steps=1", "parallel.expert=4"])
    assert smallest_world(config.parallel) == 4
    status, out, _ = dry_run_command("model.preset=tiny-moe", "parallel.expert=4", "--shapes")
    assert status == 0
    for text in ("tiny-moe on 4 ranks", "0-3", "emb 0-3 out", "2 × 128 × 64"):
        assert text in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["model.preset=qwen3-9b"], "did you mean qwen3-8b"),
        (["model.preset=qwen3-8b", "parallel.tensor=3"], "valid: 1, 2, 4, 8"),
        (["model.preset=qwen3-8b", "parallel.tensor=4", "--world-size=6"], "valid near it: 4, 8"),
        (["model.preset=qwen3-8b", "--world-size=-1"], "at least 1 rank"),
        (["nowhere.toml"], "cannot be read"),
    ],
)
def test_command_says_what_is_wrong(arguments, told):
    status, _, err = dry_run_command(*arguments)
    assert status == 2
    assert told in err


@pytest.mark.parametrize(
    ("changes", "share"),
    [({"first_moment": "bf16", "second_moment": "bf16"}, 8 / 12), ({"offload": 0.25}, 9 / 12)],
    ids=["bf16 moments", "a quarter on the host"],
)
def test_narrower_moments_and_the_share_of_the_host_are_reckoned(changes, share):
    config, layout = setup("tiny-dense", 2)
    whole = built(config, layout)
    optim = dataclasses.replace(config.optim, **changes, gradients="bf16")
    found = dry_run(dataclasses.replace(config, optim=optim), layout)
    assert [r.optimizer_bytes for r in found] == [share * r.optimizer_bytes for r in whole]
    assert [2 * r.gradient_bytes for r in found] == [r.gradient_bytes for r in whole]
