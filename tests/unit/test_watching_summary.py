"""A batch of rollouts in numbers, against counts by hand."""

import numpy as np
import pytest

from megatron_qwen3.posttrain.rollouts.record import TaskName
from megatron_qwen3.posttrain.watching.summary import summary
from tests import records

NAN = float("nan")


def test_a_batch_in_numbers():
    row = summary(records.of_batch(1))
    rewards = [1, 0, 0, *[1] * 4, 0.75, 0.25, 0.5]
    expected = {
        "batch": 1,
        "answers": 12,
        "groups": 3,
        "reward": np.mean(rewards),
        "reward_deviation": np.std(rewards),
        # sum-1: one of three; sum-2: all; chat-1 by its judge: 0.75 and 0.5 are
        "pass_rate": (1 + 4 + 2) / 11,
        "zero_groups": 1 / 3,
        "scored": 10 / 12,
        "truncated": 1 / 12,
        "failed": 1 / 12,
        "thinking": 8 / 12,
        "length": np.mean([7, 9, 11, 13] * 3),
        "length_most": 13,
        "prompt_length": 3,
        "forced": 8 / 120,
        "age": 1.0,  # the first token's weights were an update older than the batch's first
        "reward/sums/thinking": 1 / 3,
        "reward/sums/non-thinking": 1,
        "reward/chats/thinking": 0.5,
        "pass_rate/sums/thinking": 1 / 3,
        "pass_rate/chats/thinking": 2 / 4,
        "truncated/sums/thinking": 1 / 4,
        "part/verifier": 5 / 7,
        "part/judge": 1.75 / 4,
        "seconds": 5.0,
        "seconds/rollout": 4.0,
        "rollout_tokens_per_second": 120 / 4,
        "count/asked": 3,
        "refit/seconds": 0.5,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_advantages_are_of_what_is_trained():
    record = records.of_batch(0)
    trained = [2 / 3, 1 / 3, 1 / 3, 0.25, 0.25]  # whose advantage is 0 is not trained here
    assert summary(record)["advantage"] == pytest.approx(np.mean(trained), rel=1e-6)


def test_what_nobody_knows_is_none_and_not_zero():
    nothing = np.full(12, NAN, np.float32)
    record = records.of_batch(
        0,
        reward_N=nothing,
        parts_NP=np.full((12, 3), NAN, np.float32),
        is_trained_N=np.zeros(12, bool),
    )
    row = summary(record)
    unknown = ("reward", "reward_deviation", "pass_rate", "advantage", "reward/sums/thinking")
    unknown += ("zero_groups",)  # as of distillation, which rewards nothing
    assert all(row[name] is None for name in unknown)
    assert row["scored"] == 0 and "part/verifier" not in row


def test_a_verifier_says_what_is_right_before_a_judge_and_a_reward():
    parts = np.full((12, 3), NAN, np.float32)
    parts[0], parts[1], parts[2] = (0, 1, 1), (NAN, 0.5, 0), (NAN, 0.25, 1)
    rewards = np.full(12, NAN, np.float32)
    rewards[:5] = 0.9, 0.9, 0.9, 0.9, -0.1
    found = records.of_batch(0, parts_NP=parts, reward_N=rewards).passed_N
    assert found[:5].tolist() == [0, 1, 0, 1, 0] and np.isnan(found[5:]).all()


def test_the_coefficient_of_the_entropy_is_told_where_there_is_one():
    assert "entropy_coefficient" not in summary(records.of_batch(0))
    with_one = records.of_batch(0, state={"entropy_coefficient": 0.002})
    assert summary(with_one)["entropy_coefficient"] == 0.002


def test_a_source_without_an_answer_of_its_mode_has_no_row():
    tasks = (TaskName("sum-1", "sums", "thinking"),)
    row = summary(records.of_batch(0, tasks=tasks))
    assert [name for name in row if name.startswith("reward/")] == ["reward/sums/thinking"]
