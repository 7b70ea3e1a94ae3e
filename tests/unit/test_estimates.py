"""pass@k and intervals, against counting, published values and simulation."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_qwen3.posttrain.evaluation.estimates import estimate, pass_at_k, wilson


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 9))
def test_pass_at_k_is_the_share_of_choices_of_k_samples_with_a_right_one(right, k):
    if k > len(right):
        with pytest.raises(ValueError):
            pass_at_k(len(right), sum(right), k)
        return
    choices = [any(chosen) for chosen in combinations(right, k)]
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(sum(choices) / len(choices))


def test_pass_at_k_has_no_bias_and_the_plug_in_estimate_has():
    """Of a task that is solved with chance 0.3, pass@5 is 1 - 0.7**5."""
    right = np.random.default_rng(0).binomial(10, 0.3, 20_000)
    unbiased = np.mean([pass_at_k(10, int(c), 5) for c in right])
    plugged_in = np.mean(1 - (1 - right / 10) ** 5)
    assert unbiased == pytest.approx(1 - 0.7**5, abs=0.005)
    assert plugged_in < 1 - 0.7**5 - 0.02


def test_wilson_is_as_published():
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    for successes, trials, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)
    with pytest.raises(ValueError):
        wilson(0, 0)


def test_the_interval_holds_the_mean_that_it_is_of_in_19_of_20_cases():
    chance = np.random.default_rng(1)
    for draw, mean in (
        (lambda: chance.binomial(1, 0.2, 60), 0.2),
        (lambda: chance.binomial(8, 0.3, 60) / 8, 0.3),
    ):
        found = [estimate(list(draw())) for _ in range(300)]
        inside = np.mean([one.low <= mean <= one.high for one in found])
        assert 0.9 <= inside <= 0.99
        assert all(one.low <= one.value <= one.high for one in found)


def test_few_tasks_are_not_sure():
    assert estimate([]) is None
    low = estimate([1.0, 1.0, 1.0]).low
    assert 0.4 < low < 0.5
    assert estimate([0.0]).high > 0.7
    for values in ([0.75, 0.75, 0.75], [0.5], [0.5, 0.5]):
        found = estimate(values)
        assert found.low < found.value - 0.15 and found.high > found.value + 0.1
        assert found.high - found.low < 1
    assert estimate([0.5]).low == pytest.approx(wilson(0.5, 1)[0])
    with pytest.raises(ValueError):
        estimate([1.5])


@pytest.mark.parametrize(("tasks", "samples"), [(3, 4), (10, 4), (10, 64), (30, 8)])
def test_the_interval_of_few_tasks_with_several_samples_holds_their_mean(tasks, samples):
    """Tasks whose chances differ as a beta distribution's do, whose mean is 0.4."""
    chance = np.random.default_rng(tasks * 100 + samples)
    inside = []
    for _ in range(400):
        solved = chance.binomial(samples, chance.beta(0.8, 1.2, tasks)) / samples
        found = estimate(solved.tolist())
        inside.append(found.low <= 0.4 <= found.high)
    assert 0.92 <= np.mean(inside) <= 1


def test_equal_values_of_many_tasks_are_surer_than_zeros_and_ones():
    even, mixed = estimate([0.5] * 100), estimate([0.0, 1.0] * 50)
    assert even.high - even.low < 0.03 < 0.19 < mixed.high - mixed.low
    assert (mixed.low, mixed.high) == pytest.approx(wilson(50, 100))
