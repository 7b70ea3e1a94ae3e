"""The order of samples keeps its quotas at every moment, and shuffles are permutations."""

import math
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_qwen3.pretrain.order import Interleave, Shuffle, apportion

QUOTAS = st.lists(st.integers(1, 400), min_size=1, max_size=30)
HUGE_QUOTAS = st.lists(st.integers(1, 10**10), min_size=1, max_size=60)


# ---- which source ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(quotas=QUOTAS)
@example(quotas=[500, 250, 240, 10])
@example(quotas=[0, 3, 0, 1])
@example(quotas=[5, 0])
@example(quotas=[987, 610, 377, 233, 144, 89, 55, 34, 21, 13, 8, 5, 3, 2, 1, 1])
def test_every_prefix_is_near_its_shares_and_the_end_is_exact(quotas: list[int]) -> None:
    order = Interleave(quotas)
    total = sum(quotas)
    sources = np.array([order.locate(i)[0] for i in range(total)])
    n = np.arange(1, total + 1)
    for k, quota in enumerate(quotas):
        count = np.cumsum(sources == k)
        assert count[-1] == quota
        assert np.abs(count - n * quota / total).max() <= order.bound + 1e-9
    assert order.bound < 2


def test_of_1200_sources_as_a_curriculum_has_them_none_strays_by_more_than_a_sample() -> None:
    quotas = [max(1, round(7e6 / (k + 1) ** 1.2)) for k in range(1200)]
    order, total = Interleave(quotas), sum(quotas)
    assert min(quotas) < 2_000
    share = np.array(quotas) / total
    for n in np.random.default_rng(0).integers(0, total, 1_000).tolist():
        assert np.abs(np.array(order.counts(n)) - n * share).max() <= 1.0


@settings(max_examples=100, deadline=None)
@given(quotas=HUGE_QUOTAS, place=st.floats(0, 3))
@example(quotas=[0, 7, 2, 0], place=1.2)
def test_counts_of_any_prefix_add_up_and_go_on_with_the_next_sample(
    quotas: list[int], place: float
) -> None:
    order = Interleave(quotas)
    first = int(place * order.total)
    count = order.counts(first)
    assert sum(count) == first
    for sample in range(first, first + 100):
        source, earlier = order.locate(sample)
        assert earlier == count[source]
        count[source] += 1
    assert count == order.counts(first + 100)


@settings(deadline=None)
@given(quotas=HUGE_QUOTAS, periods=st.integers(0, 5))
def test_a_whole_period_gives_every_source_its_quota_tiny_ones_too(
    quotas: list[int], periods: int
) -> None:
    order = Interleave(quotas)
    assert order.counts(periods * order.total) == [periods * quota for quota in quotas]


@settings(deadline=None)
@given(shares=st.lists(st.integers(0, 10**15), min_size=1).filter(any), total=st.integers(1, 10**9))
def test_apportioning_is_exact_in_sum_and_within_one_of_the_share(
    shares: list[int], total: int
) -> None:
    parts = apportion(shares, total)
    assert sum(parts) == total
    for part, share in zip(parts, shares, strict=True):
        assert math.floor(share * total / sum(shares) - 1e-3) <= part
        assert part <= math.ceil(share * total / sum(shares) + 1e-3)
    assert apportion(parts, total) == parts


# ---- shuffles ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(size=st.integers(1, 2_000), key=st.integers(0, 2**64 - 1))
def test_a_shuffle_is_a_permutation_of_any_size_and_key(size: int, key: int) -> None:
    shuffle = Shuffle(size, key)
    order = list(shuffle)
    assert sorted(order) == list(range(size))
    assert [shuffle.position(value) for value in order[:50]] == list(range(min(50, size)))


@settings(deadline=None)
@given(size=st.integers(2**33, 2**45), key=st.integers(0, 2**64 - 1), data=st.data())
def test_a_shuffle_keeps_distinct_positions_distinct_in_huge_sources(
    size: int, key: int, data: st.DataObject
) -> None:
    positions = data.draw(st.lists(st.integers(0, size - 1), max_size=20, unique=True))
    shuffle = Shuffle(size, key)
    images = [shuffle[position] for position in positions]
    assert len(set(images)) == len(positions)
    assert all(0 <= image < size for image in images)
    assert [shuffle.position(image) for image in images] == positions


def test_a_shuffled_order_looks_random() -> None:
    size = 10_000
    order = np.array(list(Shuffle(size, key=7)))
    positions = np.arange(size)
    assert abs(np.corrcoef(order, positions)[0, 1]) < 0.03
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.03
    neighbours = np.abs(np.diff(order)) == 1
    assert neighbours.sum() < 10  # 2 expected
    ascents = (np.diff(order) > 0).mean()
    assert abs(ascents - 0.5) < 0.02


def test_every_small_permutation_is_reached_about_equally_often() -> None:
    seen: dict[tuple[int, ...], int] = {}
    for key in range(0, 24_000 * 1_000_003, 1_000_003):
        order = tuple(Shuffle(4, key))
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 24
    assert max(seen.values()) < 1_200
    assert min(seen.values()) > 800


def test_a_single_source_and_a_single_sample_need_no_tree() -> None:
    order = Interleave([1])
    assert [order.locate(i) for i in range(3)] == [(0, 0), (0, 1), (0, 2)]
    assert order.bound == pytest.approx(0)
    assert list(accumulate(order.counts(7))) == [7]


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 5000), key=st.integers(0, (1 << 64) - 1), data=st.data())
def test_many_positions_at_once_have_the_values_that_each_has(
    size: int, key: int, data: st.DataObject
) -> None:
    order = Shuffle(size, key)
    positions = data.draw(st.lists(st.integers(0, size - 1), max_size=50))
    values = order.at(np.array(positions, np.int64))
    assert values.tolist() == [order[position] for position in positions]
