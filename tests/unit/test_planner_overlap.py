"""Effects of overlap, and of the optimizer's types and place, on the planner's rows."""

import dataclasses

import pytest

from megatron_qwen3.config import load
from megatron_qwen3.planner import activations, calibration, hardware, launch_check, search
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.launch_check import Device
from megatron_qwen3.planner.layer_time import LayerTimer
from megatron_qwen3.planner.memory import MATMUL_WORKSPACE_BYTES, Memory, workspace_bytes
from megatron_qwen3.planner.overlay import values
from megatron_qwen3.planner.question import Question
from megatron_qwen3.planner.state import State
from megatron_qwen3.planner.step import Step, local_parameters
from megatron_qwen3.toml import emit

H100, CONSTANTS = hardware.load("h100"), calibration.load()
DENSE = ("model.preset=qwen3-8b", "model.kind=te")
SPARSE = ("model.preset=qwen3-30b-a3b", "model.kind=te", "parallel.expert=8")
LENGTH = 4096


def config_of(model, *overrides):
    base = ["train.steps=1", "train.global_batch=64", f"data.sequence_length={LENGTH}"]
    return load([], [*model, *base, *overrides])


def job_of(model, *overrides, world=8):
    return Job.of(config_of(model, *overrides), world)


def test_gradients_in_bf16_are_half_as_many_bytes():
    wide, narrow = (Memory.of(job_of(DENSE, *o)) for o in ((), ("optim.gradients=bf16",)))
    assert narrow.gradients == wide.gradients / 2
    assert narrow.weights == wide.weights and narrow.optimizer == wide.optimizer


@pytest.mark.parametrize(("types", "moments"), [(("bf16", "fp32"), 6), (("bf16", "bf16"), 4)])
def test_moments_take_the_bytes_of_their_types(types, moments):
    given = [f"optim.{n}_moment={t}" for n, t in zip(("first", "second"), types, strict=True)]
    wide, narrow = job_of(DENSE), job_of(DENSE, *given)
    owned = State.of(wide, 0).optimizer_bytes / 12
    assert State.of(narrow, 0).optimizer_bytes == owned * (4 + moments)
    # AdamW reads and writes each moment once.
    parts = [Step.of(job, H100, CONSTANTS).parts["optimizer"] for job in (wide, narrow)]
    own = sum(local_parameters(wide)) / 8
    rate = 1e9 * H100.memory_gb_per_s * CONSTANTS["memory"]
    assert parts[0] - parts[1] == pytest.approx(own * 2 * (8 - moments) / rate)


@pytest.mark.parametrize("overlap", [False, True])
def test_what_the_host_keeps_is_not_on_the_device_and_takes_its_link_and_its_memory(overlap):
    given = ["optim.offload=0.75", f"optim.offload_overlap={str(overlap).lower()}"]
    plain, moved = job_of(DENSE), job_of(DENSE, *given)
    assert Memory.of(moved).optimizer == pytest.approx(Memory.of(plain).optimizer / 4)
    here = plain_seconds = Step.of(plain, H100, CONSTANTS).parts["optimizer"]
    weights = sum(local_parameters(plain)) / 8 * 0.75
    rate = 1e9 * H100.memory_gb_per_s * CONSTANTS["memory"]
    here -= weights * 30 / rate
    copies = weights * (4 + 2) / (1e9 * hardware.HOST_LINK_GB_PER_S["x86"])
    updates = weights * 28 / (1e9 * hardware.HOST_MEMORY_GB_PER_S["x86"])
    there = max(copies, updates) if overlap else copies + updates
    found = Step.of(moved, H100, CONSTANTS).parts["optimizer"]
    assert found == pytest.approx(here + there) and found > plain_seconds


def test_user_buffers_are_twelve_micro_batches_of_hidden_states():
    given = ("parallel.tensor=2", "train.micro_batch=2")
    plain, overlapped = job_of(DENSE, *given), job_of(DENSE, *given, "overlap.tensor=true")
    more = workspace_bytes(overlapped, 0) - workspace_bytes(plain, 0)
    assert more == 12 * 2 * LENGTH * 4096 * 2


PARTS = {  # elements of a position of a sparse layer, of 30B-A3B: 32 heads and 4 groups of 128
    "qkv_linear": 2 * 2048,
    "core_attn": (32 + 2 * 4) * 128,
    "attn_proj": 32 * 128,
    "mlp_norm": 2048,
    "expert_fc1": 8 * 2048,
    "moe_act": 8 * 2 * 768,
}


@pytest.mark.parametrize(
    "parts", [("core_attn",), ("core_attn", "attn_proj"), ("expert_fc1",), (*PARTS,)]
)
def test_parts_that_wait_on_the_host_are_not_kept_but_for_two_layers(parts):
    plain = job_of(SPARSE)
    sent = job_of(SPARSE, f"overlap.offload_parts={emit([*parts])}")
    size = 2 * LENGTH * sum(PARTS[part] for part in parts)
    kept = [activations.layer_bytes(job, 0) for job in (plain, sent)]
    assert kept[0] - kept[1] == size
    assert workspace_bytes(sent, 0) - workspace_bytes(plain, 0) == 2 * size
    assert Memory.of(sent).activations == Memory.of(plain).activations - 48 * size


WHOLE = 'overlap.cuda_graphs=["attn","mlp"]'


def test_graphs_of_whole_layers_copy_what_one_gives_for_the_next_and_clone_as_much_as_weights():
    """8B: 36 layers of 4,096; 32 heads and 8 groups of 128; an MLP of 12,288."""
    plain, graphed = job_of(DENSE), job_of(DENSE, WHOLE)
    hidden = 2 * LENGTH * 4096
    assert Memory.of(graphed).activations - Memory.of(plain).activations == 36 * hidden
    weights = 4096 * (2 * 32 + 2 * 8) * 128 + 3 * 4096 * 12288
    more = workspace_bytes(graphed, 0) - workspace_bytes(plain, 0)
    assert more == hidden + 2 * weights
    part = job_of(DENSE, 'overlap.cuda_graphs=["attn"]')
    assert Memory.of(part).activations == Memory.of(plain).activations
    assert workspace_bytes(part, 0) - workspace_bytes(plain, 0) == hidden + 2 * 4096 * 80 * 128


def test_graphs_of_sparse_layers_have_memory_that_experts_cannot_have():
    plain = job_of(SPARSE)
    graphed = job_of(SPARSE, 'overlap.cuda_graphs=["attn","moe_router"]')
    assert Memory.of(graphed).activations == Memory.of(plain).activations
    weights = 2048 * (2 * 32 + 2 * 4) * 128 + 2048 * 128
    expected = 2 * (2 * LENGTH * 2048) + 2 * weights + activations.attention_bytes(plain)
    assert workspace_bytes(graphed, 0) - workspace_bytes(plain, 0) == pytest.approx(expected)


def test_graphs_leave_a_part_of_the_launches():
    plain, graphed = job_of(DENSE), job_of(DENSE, WHOLE)
    assert (plain.graphs, graphed.graphs) == ("none", "partial")
    seconds = [LayerTimer(job, H100, CONSTANTS).layer(0)[0].launch for job in (plain, graphed)]
    assert seconds[1] == pytest.approx(CONSTANTS["graph_partial"] * seconds[0])


def test_layers_that_wait_on_the_host_are_not_kept():
    plain, sent = job_of(DENSE), job_of(DENSE, "overlap.offload_layers=20")
    layer = activations.layer_bytes(plain, 0)
    assert Memory.of(plain).activations - Memory.of(sent).activations == pytest.approx(20 * layer)
    assert workspace_bytes(plain, 0) == workspace_bytes(sent, 0) > MATMUL_WORKSPACE_BYTES


def test_sending_shows_where_it_takes_longer_than_the_layer(monkeypatch):
    # A host so far away that no layer hides it.
    monkeypatch.setitem(hardware.HOST_LINK_GB_PER_S, "x86", 1.0)
    sent = job_of(DENSE, "overlap.offload_layers=20")
    forward, backward = LayerTimer(sent, H100, CONSTANTS).layer(0)
    seconds = activations.offloaded_bytes(sent, 0) / 1e9
    for one in (forward, backward):
        assert one.host == pytest.approx(seconds - (one.device - one.host))
    assert all(one.host == 0 for one in LayerTimer(sent, H100, CONSTANTS).layer(20))


def test_a_second_micro_batch_in_flight_keeps_a_layer_more_or_a_chunk():
    plain, beside = job_of(SPARSE), job_of(SPARSE, "overlap.experts=true")
    layer = activations.layer_bytes(plain, 0)
    assert Memory.of(beside).activations - Memory.of(plain).activations == pytest.approx(layer)
    stages = ("parallel.pipeline=2", "parallel.virtual_pipeline=2", "train.global_batch=64")
    plain = job_of(SPARSE, *stages, world=16)
    beside = job_of(SPARSE, *stages, "overlap.experts=true", world=16)
    more = Memory.of(beside).activations - Memory.of(plain).activations
    assert more == pytest.approx(12 * layer)


def test_the_exchange_is_priced_as_it_is_asked_for():
    job = job_of(SPARSE, "overlap.experts=true", "parallel.dispatch=deepep")
    assert job.overlap_exchange and job.dispatcher == "deepep"
    plain = job_of(SPARSE)
    hidden = [Step.of(j, H100, CONSTANTS).hidden["token exchange"] for j in (plain, job)]
    assert hidden[0] == 0 < hidden[1]


def test_the_exchange_that_shows_and_that_is_hidden_are_the_busiest_ranks_together():
    """With natural routing the busiest rank sends more, beside its computation as well."""
    job = job_of(SPARSE, "overlap.experts=true", "parallel.dispatch=deepep")
    even, natural = (
        Step.of(dataclasses.replace(job, force_balanced=balanced), H100, CONSTANTS)
        for balanced in (True, False)
    )
    whole = [s.parts["token exchange"] + s.hidden["token exchange"] for s in (even, natural)]
    assert whole[1] == pytest.approx(CONSTANTS["imbalance"] * whole[0])


def test_logits_are_tiles_with_layers_of_either_kind():
    kinds = [job_of(("model.preset=qwen3-8b", f"model.kind={kind}")) for kind in ("torch", "te")]
    assert len({activations.logits_bytes(job) for job in kinds}) == 1
    assert {job.kernels for job in kinds} == {"torch", "transformer_engine"}


@pytest.mark.parametrize("settings", [("overlap.experts=true",), ("parallel.dispatch=deepep",)])
def test_the_nearest_layout_is_one_that_the_settings_go_with(settings):
    settings = (*settings, "train.global_batch=512", "train.micro_batch=8")
    config = config_of(SPARSE, *settings)
    changes = launch_check.nearest_layout(config, 64, Device("a GPU", 60e9, is_gpu=True))
    assert changes
    config_of(SPARSE, *settings, *changes)  # where two are of one setting, the later one counts


def test_less_of_the_optimizer_on_the_device_lets_layouts_fit_that_did_not():
    question = launch_check._question(config_of(DENSE), 8, 40e9)
    offloaded = launch_check._question(config_of(DENSE, "optim.offload=1"), 8, 40e9)
    jobs = [{job.layout for job, _ in search.fitting(q)} for q in (question, offloaded)]
    assert jobs[0] < jobs[1]


def test_settings_of_a_plan_with_overlap_load():
    question = Question(
        config_of(SPARSE).model,
        H100,
        gpus=64,
        sequence_length=LENGTH,
        global_batch=512,
        fixed=(("tensor", 1), ("pipeline", 1), ("micro_batch", 1)),
    )
    plans = [p for p in search.search(question, CONSTANTS) if p.job.overlap_exchange]
    assert plans, "of 64 H100s the fastest exchange is hidden"
    rows = values(plans[0], question)
    assert rows["overlap"]["experts"] and rows["model"]["kind"] == "te"
    settings = [f"{t}.{n}={emit(v)}" for t, own in rows.items() for n, v in own.items()]
    assert load([], [*settings, "train.steps=1"]).overlap.experts
    assert "Transformer Engine" in plans[0].needs
