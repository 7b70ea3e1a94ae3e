"""Advantages of groups of any size and order, of answers that were not scored, of rewards alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_qwen3.posttrain.policy.advantages import advantages, teaches
from megatron_qwen3.posttrain.policy.entropy_band import next_coefficient
from megatron_qwen3.posttrain.policy.penalties import overlong, repetition
from megatron_qwen3.settings_rl import AdvantageConfig, EntropyConfig

NAN = float("nan")
BASELINES, SCALES = ("group", "leave_one_out", "none"), ("group", "batch", "whiten", "none")


def of(rewards, groups=None, **changes):
    groups = [0] * len(rewards) if groups is None else groups
    more = {name: changes.pop(name) for name in ("tokens_N", "weights") if name in changes}
    return advantages(rewards, groups, AdvantageConfig(**changes), **more).tolist()


def test_the_default_divides_by_the_unbiased_deviation_of_the_group():
    deviation = np.std([1, 0, 0, 1], ddof=1) + 1e-6
    assert of([1, 0, 0, 1]) == pytest.approx(
        [0.5 / deviation, *[-0.5 / deviation] * 2, 0.5 / deviation]
    )
    assert of([1, 0, 0, 1], epsilon=1e-4)[0] == pytest.approx(0.86588, abs=1e-5)
    assert of([1, 0, 0, 1], epsilon=1e-4, deviation="biased")[0] == pytest.approx(0.9998)


def test_without_scale_it_is_the_distance_from_the_mean_or_from_the_others():
    assert of([3, 1, 2], scale="none") == [1, -1, 0]
    assert of([3, 1, 2], scale="none", baseline="leave_one_out") == [1.5, -1.5, 0]
    assert of([3, 1, 2], scale="none", baseline="none") == [3, 1, 2]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("lone", ["zero", "reward"])
@pytest.mark.parametrize("group", [[1, 0], [1, 1], [1, NAN], [1], [NAN, NAN], [0.5, 0.5 + 1e-9]])
def test_a_group_teaches_where_its_answers_get_an_advantage(group, lone, baseline, scale):
    """Beside another group, with which a deviation of the batch is none of its own."""
    settings = {"lone": lone, "baseline": baseline, "scale": scale}
    found = of([*group, 4, 2], [0] * len(group) + [1, 1], **settings)[: len(group)]
    has_one = any(found) and not all(np.isnan(group))
    assert teaches(group, AdvantageConfig(**settings)) == has_one


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0, NAN])), min_size=1),
    st.sampled_from(BASELINES),
    st.sampled_from(SCALES),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_the_order_of_answers_and_the_names_of_groups_do_not_matter(rows, baseline, scale, random):
    changes = {"baseline": baseline, "scale": scale}
    found = of([r for _, r in rows], [g for g, _ in rows], **changes)
    assert np.isfinite(found).all()
    assert all(a == 0 for a, (_, reward) in zip(found, rows, strict=True) if np.isnan(reward))
    order = random.sample(range(len(rows)), len(rows))
    shuffled = of([rows[i][1] for i in order], [7 - rows[i][0] for i in order], **changes)
    assert shuffled == pytest.approx([found[i] for i in order], abs=1e-9)


@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("baseline", BASELINES[:2])
def test_an_answer_that_was_not_scored_is_as_if_it_were_not_there(baseline, scale):
    changes = {"baseline": baseline, "scale": scale}
    with_it = of([1.0, NAN, 0.0, 0.25], [5, 5, 5, 5], **changes)
    without = of([1.0, 0.0, 0.25], [5, 5, 5], **changes)
    assert with_it == [without[0], 0.0, *without[1:]]
    assert of([NAN, NAN], **changes) == [0, 0]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", BASELINES[:2])
def test_a_group_of_rewards_alike_has_advantages_of_0(baseline, scale):
    """Also where rounding makes the mean of equal numbers another one."""
    alike = of([0.1, 0.1, 0.1, 0.0, 1.0], [0, 0, 0, 1, 1], baseline=baseline, scale=scale)
    assert alike[:3] == pytest.approx([0, 0, 0], abs=1e-12)
    assert of([0.1] * 3, baseline=baseline, scale=scale) == [0, 0, 0]
    assert of([1, 1 + 1e-7], baseline=baseline, scale=scale) == [0, 0]


def test_from_which_deviation_on_rewards_are_alike_is_a_setting():
    rewards = [0.5, 0.5 + 1e-4]
    assert of(rewards)[1] == pytest.approx(np.sqrt(0.5), rel=0.02)
    assert of(rewards, zero_below=1e-3) == [0, 0]


@pytest.mark.parametrize("scale", SCALES)
def test_a_group_of_one_has_0_or_its_reward(scale):
    rewards, groups = [0.7, 1.0, 0.0], [4, 9, 9]
    assert of(rewards, groups, scale=scale)[0] == 0
    assert of([0.7, NAN, 1.0, 0.0], [4, 4, 9, 9], scale=scale)[0] == 0
    raw = of(rewards, groups, scale=scale, lone="reward")[0]
    if scale in ("group", "none"):
        assert raw == pytest.approx(0.7, rel=1e-5)
    assert of([0.7], lone="reward", scale="none", baseline="leave_one_out") == [0.7]


def test_whitened_advantages_have_mean_0_and_deviation_1_over_answers_or_tokens():
    rewards, groups = [1.0, 0.0, 0.3, 0.9, 0.1, NAN], [0, 0, 1, 1, 1, 1]
    of_answers = of(rewards, groups, scale="whiten", epsilon=0.0)[:5]
    assert np.mean(of_answers) == pytest.approx(0, abs=1e-12)
    assert np.std(of_answers, ddof=1) == pytest.approx(1)
    tokens = [3, 1, 4, 1, 5, 9]
    of_tokens = of(rewards, groups, scale="whiten_tokens", epsilon=0.0, tokens_N=tokens)
    repeated = np.repeat(of_tokens[:5], tokens[:5])
    assert np.mean(repeated) == pytest.approx(0, abs=1e-12)
    assert np.std(repeated, ddof=1) == pytest.approx(1)
    with pytest.raises(ValueError, match="whiten_tokens"):
        of(rewards, groups, scale="whiten_tokens")


def test_each_part_of_a_reward_is_normalised_before_they_are_added():
    """Two parts of another size count alike then; in the sum the larger one decides."""
    parts = [[0.0, 100.0], [1.0, 0.0], [0.0, 0.0], [1.0, 100.0]]
    each = of(parts, parts="each")
    assert each == pytest.approx([0, 0, -each[3], each[3]], abs=1e-5) and each[3] > 1
    summed = of(parts)
    assert summed[0] > 0.8 and summed[1] < -0.8
    assert of([[1.0, NAN], [0.0, NAN]]) == of([1.0, 0.0])


def test_weights_are_of_parts_or_of_each_answers_parts():
    parts = [[1.0, 0.0], [0.0, 1.0]]
    assert of(parts, scale="none", weights=(1.0, 0.5)) == [0.25, -0.25]
    assert of(parts, scale="none", weights=[[1.0, 0.0], [1.0, 0.0]]) == [0.5, -0.5]


def test_rewards_are_cut_to_a_limit_before_the_penalty_is_taken_off():
    changed = AdvantageConfig(scale="none", baseline="none", reward_limit=1.0)
    assert advantages([5.0, -3.0], [0, 0], changed, penalty_N=[0.5, 0.0]).tolist() == [0.5, -1.0]


def test_groups_that_do_not_fit_the_rewards_are_refused():
    with pytest.raises(ValueError, match="2 rewards are of 3 groups"):
        advantages([1.0, 0.0], [0, 0, 1], AdvantageConfig())


def test_the_coefficient_of_entropy_rises_below_the_band_and_falls_above_it():
    band = EntropyConfig(coefficient=0.001, low=0.2, high=0.5, change=0.004, most=0.01)
    assert next_coefficient(0.001, 0.1, band) == pytest.approx(0.005)
    assert next_coefficient(0.009, 0.1, band) == 0.01
    assert next_coefficient(0.005, 0.3, band) == next_coefficient(0.005, NAN, band) == 0.005
    assert next_coefficient(0.005, 0.6, band) == pytest.approx(0.001)
    assert next_coefficient(0.001, 0.6, band) == 0.0
    open_above = EntropyConfig(low=0.2, change=0.004)
    assert next_coefficient(0.005, 9.0, open_above) == 0.005
    assert next_coefficient(0.02, 0.0, EntropyConfig(coefficient=0.02)) == 0.02  # no band


def test_penalties_of_form_refuse_what_has_no_meaning():
    assert overlong(100, 100, 100) == -1 and overlong(0, 100, 100) == 0
    assert repetition([1] * 50, 2) == pytest.approx(-1 + 1 / 49)
    for wrong in (
        lambda: overlong(1, 10, 11),
        lambda: overlong(1, 10, 0),
        lambda: repetition([], 0),
    ):
        with pytest.raises(ValueError, match="valid: 1"):
            wrong()
