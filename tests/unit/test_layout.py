"""The counts of ranks, micro-batches and layers that a configuration and a world size give."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.parallel.layout import Layout, even_stages


def tiny(*overrides):
    return load([], ["model.preset=tiny-moe", "train.steps=1", *overrides])


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_data_ranks_share_experts_where_megatron_cores_groups_say_so(tensor, expert, expert_tensor):
    from megatron_qwen3.parallel.mcore import parallel_state

    world = math.lcm(tensor, expert * expert_tensor)

    def groups(names, **sizes):
        given = {"tp": 1, "ep": 1, "pp": 1, "cp": 1} | sizes
        given["dp"] = world // math.prod(given.values())
        return parallel_state.RankGenerator(**given, order="tp-cp-ep-dp-pp").get_ranks(names)

    data_rank = {rank: n for n, group in enumerate(groups("tp", tp=tensor)) for rank in group}
    spread = groups("tp-ep", tp=expert_tensor, ep=expert)
    shared = any(len({data_rank[rank] for rank in group}) > 1 for group in spread)
    sizes = {"tensor": tensor, "expert": expert, "expert_tensor": expert_tensor}
    layout = replace(Layout.of(tiny(), 1), **sizes)
    assert layout.data_ranks_share_experts == shared


@given(st.integers(1, 200), st.integers(1, 32))
def test_even_stages_lose_no_layer_and_relieve_the_ends(layers, stages):
    split = even_stages(layers, stages)
    assert (sum(split), len(split)) == (layers, stages)
    assert max(split) - min(split) <= 1
    longest = [stage for stage, size in enumerate(split) if size == max(split)]
    assert longest == list(range(longest[0], longest[-1] + 1))  # the shorter stages are at the ends
    fewer_first, fewer_last = longest[0], stages - 1 - longest[-1]
    assert fewer_last - fewer_first in (0, 1)  # and the last is relieved before the first


def test_94_layers_over_8_stages_shorten_the_first_and_the_last():
    assert even_stages(94, 8) == (11, 12, 12, 12, 12, 12, 12, 11)


def test_given_pipeline_layers_are_kept():
    config = tiny("parallel.pipeline=2", "parallel.pipeline_layers=[3, 1]")
    assert Layout.of(config, 2).stage_layers == (3, 1)


@given(
    tensor=st.sampled_from([1, 2]),
    pipeline=st.sampled_from([1, 2, 4]),
    expert=st.sampled_from([1, 2, 4, 8]),
    expert_tensor=st.sampled_from([1, 2]),
    nodes=st.integers(1, 4),
)
def test_both_views_of_the_ranks_multiply_to_the_world_and_no_sample_is_lost(
    tensor, pipeline, expert, expert_tensor, nodes
):
    world = 64 * nodes
    config = tiny(
        f"parallel.tensor={tensor}",
        f"parallel.pipeline={pipeline}",
        f"parallel.expert={expert}",
        f"parallel.expert_tensor={expert_tensor}",
        f"train.global_batch={world * 6}",
        "train.micro_batch=2",
    )
    layout = Layout.of(config, world)
    assert layout.tensor * layout.pipeline * layout.context * layout.data == world
    assert layout.expert_tensor * layout.expert * layout.pipeline * layout.expert_data == world
    assert layout.micro_batches * config.train.micro_batch * layout.data == world * 6


def test_counts_are_the_sizes_by_name():
    counts = Layout.of(tiny("parallel.tensor=2", "parallel.expert=2"), 4).counts()
    assert counts == {
        "world_size": 4,
        "tensor": 2,
        "pipeline": 1,
        "virtual": 1,
        "expert": 2,
        "expert_tensor": 1,
        "context": 1,
        "data": 2,
        "expert_data": 2,
        "micro_batches": 4,
    }


@pytest.mark.parametrize(
    ("overrides", "world", "says"),
    [
        (
            ["parallel.tensor=2", "parallel.pipeline=2"],
            6,
            "a world of 6 ranks is no multiple of parallel.tensor * pipeline * context = "
            "2 * 2 * 1 = 4; valid near it: 4, 8",
        ),
        (["parallel.pipeline=4"], 2, "= 1 * 4 * 1 = 4; valid near it: 4"),
        (
            ["parallel.expert=8"],
            12,
            "and parallel.expert * expert_tensor * pipeline = 8 * 1 * 1 = 8; valid near it: 8, 16",
        ),
        ([], 0, "a world of 0 ranks"),
        (
            ["train.micro_batch=2"],
            3,
            "train.global_batch = 8 is no multiple of train.micro_batch * data parallel ranks = "
            "2 * 3 = 6; valid near it: 6, 12",
        ),
        (
            ["parallel.pipeline=2", "parallel.virtual_pipeline=2", "train.global_batch=3"],
            2,
            "times parallel.pipeline = 2 (parallel.virtual_pipeline > 1); valid near it: 2, 4",
        ),
    ],
)
def test_a_world_that_does_not_fit_is_refused_with_the_nearest_that_do(overrides, world, says):
    with pytest.raises(ConfigError) as caught:
        Layout.of(tiny(*overrides), world)
    assert says in str(caught.value)


def test_virtual_stages_need_whole_groups_of_micro_batches_and_plain_ones_do_not():
    three = ["parallel.pipeline=2", "train.global_batch=3"]
    assert Layout.of(tiny(*three), 2).micro_batches == 3
    with pytest.raises(ConfigError):
        Layout.of(tiny(*three, "parallel.virtual_pipeline=2"), 2)
