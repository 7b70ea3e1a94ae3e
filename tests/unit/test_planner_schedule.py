"""Pipeline schedules: order, time and batches in flight, against closed forms."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_qwen3.planner.schedule import peak, rank_order, simulate, step_seconds

PIPELINES = st.sampled_from([1, 2, 3, 4, 8])
seconds = st.floats(0.5, 2.0)


@given(PIPELINES, st.integers(1, 24), seconds, seconds)
def test_1f1b_takes_m_plus_p_minus_1_rounds(pipeline, micro_batches, forward, backward):
    times = [forward] * pipeline, [backward] * pipeline
    expected = (micro_batches + pipeline - 1) * (forward + backward)
    assert simulate(*times, pipeline, micro_batches) == pytest.approx(expected)


@given(st.sampled_from([2, 4, 8]), st.integers(2, 4), st.integers(1, 5), seconds, seconds)
def test_interleaving_divides_the_bubble_by_the_virtual_stages(p, v, groups, forward, backward):
    m = groups * p
    times = [forward / v] * (p * v), [backward / v] * (p * v)
    assert simulate(*times, p, m) == pytest.approx((m + (p - 1) / v) * (forward + backward))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([2, 4]), st.sampled_from([1, 2, 3]), st.integers(1, 9), st.data())
def test_step_seconds_equals_the_whole_simulation(p, v, groups, data):
    m = groups * p
    stages = st.lists(st.floats(0.8, 1.2), min_size=p * v, max_size=p * v)
    times = data.draw(stages), data.draw(stages)
    whole = simulate(*times, p, m)
    assert step_seconds(*times, p, m) == pytest.approx(whole, rel=0.03)
    slowest = max(sum(times[0][r::p]) + sum(times[1][r::p]) for r in range(p))
    assert whole >= m * slowest - 1e-9


def test_the_slowest_rank_sets_the_pace_of_many_rounds():
    """Its excess does not show in the few rounds that step_seconds simulates."""
    times = [1.0] * 8, [1.125, 1, 1, 1, 1.125, 1, 1, 1]
    assert step_seconds(*times, 4, 32) == pytest.approx(simulate(*times, 4, 32), rel=0.03)


@given(PIPELINES, st.integers(1, 20))
def test_1f1b_holds_as_many_micro_batches_as_ranks_follow(pipeline, micro_batches):
    for rank in range(pipeline):
        order = rank_order(rank, pipeline, 1, micro_batches)
        assert peak(order, [1.0]) == min(micro_batches, pipeline - rank)


@given(st.sampled_from([2, 4, 8]), st.integers(2, 4), st.integers(2, 5))
def test_interleaving_holds_more_by_the_closed_form(p, v, groups):
    for rank in range(p):
        order = rank_order(rank, p, v, groups * p)
        chunks = min(groups * p * v, 2 * (p - rank - 1) + (v - 1) * p + 1)
        assert peak(order, [1 / v] * v) == pytest.approx(chunks / v)


@given(PIPELINES, st.sampled_from([1, 2, 3]), st.integers(1, 14))
def test_every_rank_does_every_pass_once_and_backward_after_forward(pipeline, virtual, count):
    virtual = virtual if pipeline > 1 else 1
    for rank in range(pipeline):
        order = rank_order(rank, pipeline, virtual, count)
        every = set(itertools.product((True, False), range(virtual), range(count)))
        assert len(order) == len(every) and set(map(tuple, order)) == every
        places = {tuple(work): place for place, work in enumerate(order)}
        assert all(places[True, c, m] < places[False, c, m] for _, c, m in every)


def test_interleaving_takes_whole_groups_of_micro_batches_and_a_part_costs_its_share():
    times = [0.5] * 12, [1.0] * 12
    with pytest.raises(ValueError, match="no multiple of 4"):  # the ranks would wait for ever
        simulate(*times, 4, 5)
    four, five, eight = (step_seconds(*times, 4, m) for m in (4, 5, 8))
    assert five == pytest.approx(four + (eight - four) / 4)


def test_transfers_delay_the_way_through_the_pipeline_and_every_round_at_most():
    slow = simulate([1.0] * 4, [2.0] * 4, 4, 16, transfer_seconds=0.1)
    assert 19 * 3.0 + 6 * 0.1 <= slow <= 19 * (3.0 + 2 * 0.1)
