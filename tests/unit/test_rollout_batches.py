"""A batch on the first rank: groups kept, filled up again, left out, counted and written."""

import json

import numpy as np
import pytest
from test_asking import config, encode, sources_of

from megatron_qwen3.posttrain.rewards.rewards import Rewards
from megatron_qwen3.posttrain.rollouts import health
from megatron_qwen3.posttrain.rollouts.asking import Asker
from megatron_qwen3.posttrain.rollouts.batches import RolloutBatch, advantages_of
from megatron_qwen3.posttrain.rollouts.held_out import _results
from megatron_qwen3.posttrain.rollouts.record import RolloutRecord, folder_of
from megatron_qwen3.posttrain.rollouts.rollout import Rollout
from megatron_qwen3.posttrain.verifiers import Verdict
from megatron_qwen3.training.bad_batch import BadBatch

NOBODY = 7  # an answer of this id cannot be judged; one of 1 is right, any other wrong
SETTINGS = ("rollouts.prompts=3", "rl.updates=1")


class Judges:
    """Verifiers that read the answer's first id."""

    def judge(self, pairs):
        return [
            Verdict(None, "error: it broke")
            if text == str(NOBODY)
            else Verdict(float(text == "1"), "" if text == "1" else "wrong")
            for _, text in pairs
        ]


def rollout(ask, token, finish="stop", length=2):
    """An answer that begins with a token, and its end."""
    tokens = (token, *[0] * (length - 1)) if finish == "stop" else (token,)
    N = len(tokens)
    return Rollout(
        ask.task, ask.prompt, tokens, (-1.0,) * N, (True,) * N, finish, (4, 4), True, ask.seed
    )


def batch_of(tmp_path, *overrides, before=None, size=None):
    settings = config(*SETTINGS, *overrides)
    rewards = Rewards(settings, tmp_path, Judges())
    asker = Asker(settings, sources_of(settings, (size,)), encode, (before or {}).get("asking"))
    decode = lambda ids: str(ids[0]) if ids else ""  # noqa: E731
    return settings, RolloutBatch(settings, 5, 10, before or {}, asker, decode, rewards)


def answered(batch, *rounds, finish="stop"):
    """The record of a batch whose asks of each round get these first tokens, group by group."""
    asks = batch.begin()
    for groups in rounds:
        assert len(asks) == len(groups)
        made = [
            [rollout(ask, token, finish) for token in group]
            for ask, group in zip(asks, groups, strict=True)
        ]
        asks = batch.take(made)
    assert not asks
    return batch.record()


MIXED, RIGHT, WRONG = (1, 2, 1, 2), (1, 1, 1, 1), (2, 2, 2, 2)


def test_groups_that_are_rewarded_alike_are_left_out_and_others_asked(tmp_path):
    _, batch = batch_of(tmp_path)
    record = answered(batch, [MIXED, RIGHT, WRONG], [WRONG, MIXED], [MIXED])
    assert record.is_trained_N.reshape(-1, 4).all(1).tolist() == [1, 0, 0, 0, 1, 1]
    assert record.counts["asked"] == 6 and record.counts["kept"] == 3
    assert record.counts["refills"] == 2
    assert len(record.tasks) == 6  # other tasks each time
    of_groups = record.advantage_N.reshape(-1, 4)
    expected = 0.5 / (np.std([1, 0, 1, 0], ddof=1) + 1e-6)
    np.testing.assert_allclose(of_groups[0], [expected, -expected] * 2, rtol=1e-6)
    assert not of_groups[1:4].any()


def test_a_batch_is_filled_up_so_often_and_no_more(tmp_path):
    _, batch = batch_of(tmp_path, "rl.refills=1")
    record = answered(batch, [MIXED, RIGHT, WRONG], [WRONG, WRONG])
    assert record.counts["kept"] == 1 and record.is_trained_N.sum() == 4


def test_nothing_is_left_out_where_nothing_is_to_be_filtered(tmp_path):
    _, batch = batch_of(tmp_path, "rl.filter=false")
    record = answered(batch, [MIXED, RIGHT, WRONG])
    assert record.is_trained_N.all() and not record.advantage_N[4:].any()


def test_a_lone_answer_that_gets_no_advantage_is_not_trained_without_a_word(tmp_path):
    asked = ("rl.refills=0", "rollouts.samples=2", "rl.advantage.baseline=none")
    for scale, kept in (("group", 0), ("none", 3)):
        _, batch = batch_of(tmp_path, *asked, f"rl.advantage.scale={scale}")
        record = answered(batch, [(1, NOBODY)] * 3)
        assert record.counts["kept"] == kept
        assert (record.advantage_N[record.is_trained_N] != 0).all()


def test_parts_that_add_up_alike_teach_where_each_is_normalised(tmp_path):
    weights = ("rl.rewards.verifier=1", "rl.rewards.overlong=2", "rl.overlong_tokens=50")
    for parts, kept in (("sum", 0), ("each", 3)):
        _, batch = batch_of(tmp_path, *weights, f"rl.advantage.parts={parts}", "rl.refills=0")
        asks = batch.begin()
        # Right and long: 1 - 2 · 26 / 50. Wrong and short: 0 - 2 · 1 / 50.
        made = [
            [rollout(ask, token, length=n) for token, n in ((1, 26), (2, 1), (1, 26), (2, 1))]
            for ask in asks
        ]
        assert not batch.take(made)
        record = batch.record()
        assert record.counts["kept"] == kept and record.advantage_N.any() == bool(kept)


@pytest.mark.parametrize(
    ("truncated", "rewards", "trained"),
    [("masked", [np.nan] * 4, 0), ("zero", [0] * 4, 0), ("scored", [1, 0, 1, 0], 4)],
)
def test_truncated_answers_are_treated_as_set(tmp_path, truncated, rewards, trained):
    settings, batch = batch_of(tmp_path, f"rl.truncated={truncated}", "rl.refills=0")
    record = answered(batch, [MIXED, MIXED, MIXED], finish="length")
    np.testing.assert_array_equal(record.reward_N[:4], rewards)
    assert record.is_trained_N[:4].sum() == trained
    assert record.counts["truncated"] == 12
    (line,) = [x for x in health.lines(settings, record) if "reached" in x]
    assert line.startswith("batch 5: 12 of 12 answers reached rollouts.max_new_tokens = 50")


@pytest.mark.parametrize("truncated", ["masked", "zero"])
def test_an_answer_that_was_cut_is_not_right_in_an_evaluation(tmp_path, truncated):
    _, batch = batch_of(tmp_path, f"rl.truncated={truncated}", "rl.refills=0")
    asks = batch.begin()
    ends = ("stop", "length", "length", "length")
    batch.take([[rollout(ask, 1, end) for end in ends] for ask in asks])
    of_all = dict(_results(batch.groups))["all"]
    assert of_all.pass_rate == 0.25 and of_all.truncated == 0.75
    assert of_all.reward == (1 if truncated == "masked" else 0.25)


@pytest.mark.parametrize("truncated", ["masked", "zero", "scored"])
def test_a_task_whose_answers_are_cut_counts_as_asked_and_not_solved(tmp_path, truncated):
    more = ("rl.curriculum=learnable", f"rl.truncated={truncated}", "rl.refills=0")
    _, batch = batch_of(tmp_path, *more, size=40)
    record = answered(batch, [WRONG, WRONG, WRONG], finish="length")
    rates = record.state["asking"]["task_rates"]["a"]
    assert list(rates.values()) == [[4.0, 0.0]] * 3
    assert record.state["seed"] == 1234


def test_an_answer_that_was_cut_has_no_part_in_its_groups_mean(tmp_path):
    _, batch = batch_of(tmp_path, "rl.refills=0")
    asks = batch.begin()
    ends = ("stop", "stop", "stop", "length")
    made = [[rollout(ask, t, e) for t, e in zip((1, 2, 1, 2), ends, strict=True)] for ask in asks]
    assert not batch.take(made)
    record = batch.record()
    assert record.is_trained_N[:4].tolist() == [True, True, True, False]
    assert record.advantage_N[:3].sum() == pytest.approx(0, abs=1e-6) and record.advantage_N[3] == 0


def test_an_answer_that_nobody_can_judge_is_not_wrong(tmp_path):
    settings, batch = batch_of(tmp_path, "rl.refills=0")
    record = answered(batch, [(1, NOBODY, 2, 1), [NOBODY] * 4, RIGHT])
    assert np.isnan(record.reward_N[[1, 4, 5, 6, 7]]).all()
    assert record.is_trained_N[:8].tolist() == [True, False, True, True, *[False] * 4]
    assert record.counts["unscored"] == 5 and record.counts["unscored_groups"] == 1
    assert record.passed_N[:4].tolist()[::2] == [1, 0]
    assert any("5 of 12 answers have no reward" in line for line in health.lines(settings, record))


def test_a_rollout_that_failed_is_counted_and_not_trained(tmp_path):
    settings, batch = batch_of(tmp_path, "rl.refills=0")
    record = answered(batch, [MIXED, MIXED, MIXED], finish="error")
    assert record.counts["errors"] == 12 and not record.is_trained_N.any()
    assert any("12 of 12 answers failed" in line for line in health.lines(settings, record))


def test_the_state_goes_on_from_batch_to_batch(tmp_path):
    band = ("rl.entropy.low=0.5", "rl.entropy.change=0.001", "rl.entropy.coefficient=0.002")
    _, batch = batch_of(tmp_path, *band, "rl.refills=0")
    first = answered(batch, [MIXED, MIXED, WRONG])
    assert first.state["tokens"] == 0 and first.state["update_tokens"] == [16]
    assert first.state["entropy_coefficient"] == 0.002 and first.state["empty"] == 0
    before = json.loads(json.dumps(first.state))
    _, batch = batch_of(tmp_path, *band, "rl.refills=0", before=before)
    asks = batch.begin()
    batch.take([[rollout(ask, 2) for _ in range(4)] for ask in asks])
    second = batch.record(entropies=[0.4, 0.6, 0.3])
    assert second.state["tokens"] == 16 and second.state["update_tokens"] == [0]
    assert second.state["entropy_coefficient"] == pytest.approx(0.004)
    assert second.state["empty"] == 1
    assert not {t.id for t in first.tasks} & {t.id for t in second.tasks}


@pytest.mark.parametrize(
    ("overrides", "group", "finish", "says"),
    [
        ((), RIGHT, "stop", "rewarded alike, 100% of them right"),
        ((), WRONG, "stop", "rewarded alike, 0% of them right"),
        ((), [NOBODY] * 4, "stop", "no answer has a reward"),
        ((), MIXED, "length", "all answers of 3 batches in a row reached rollouts.max_new_tokens"),
    ],
)
def test_batch_after_batch_without_use_ends_the_run_with_the_reason(
    tmp_path, overrides, group, finish, says
):
    state = {}
    for number in range(3):
        settings, batch = batch_of(
            tmp_path, "rl.refills=0", "rl.most_empty=2", *overrides, before=state
        )
        record = answered(batch, [group] * 3, finish=finish)
        state = record.state
        assert any("nothing to train" in line for line in health.lines(settings, record))
        if number < 2:
            health.check(settings, record)
    with pytest.raises(BadBatch, match=says):
        health.check(settings, record)


def hints(settings, record):
    ways = "easier or harder tasks, more rollouts.samples or rl.refills"
    return [line for line in health.lines(settings, record) if ways in line]


def test_updates_that_train_nothing_are_told_with_the_ways_out_once_in_a_row(tmp_path):
    asked, state = ("rl.updates=3", "rl.refills=0"), {}
    told = (
        "batch 5: 2 of its 3 updates train nothing, since so few of 3 tasks have answers of "
        "different rewards: easier or harder tasks, more rollouts.samples or rl.refills, or fewer "
        "rl.updates help"
    )
    for number, (groups, idle) in enumerate(
        [([MIXED, WRONG, RIGHT], 1), ([WRONG, MIXED, RIGHT], 2), ([MIXED] * 3, 0)]
    ):
        settings, batch = batch_of(tmp_path, *asked, before=state)
        record = answered(batch, groups)
        state = json.loads(json.dumps(record.state))
        assert state["idle"] == idle
        assert hints(settings, record) == ([] if number else [told])


@pytest.mark.parametrize(
    ("more", "is_told"),
    [((), True), (("rl.kl.coefficient=0.1", "rl.kl.place=reward", "rl.kl.reference=x"), False)],
)
def test_a_batch_without_any_advantage_is_told_also_where_it_is_trained(tmp_path, more, is_told):
    settings, batch = batch_of(tmp_path, "rl.filter=false", *more)
    record = answered(batch, [RIGHT, RIGHT, WRONG])
    assert record.is_trained_N.all() and not record.advantage_N.any()
    told = (
        "batch 5: no answer has an advantage, so rewards teach nothing: the answers of each of "
        "3 tasks were rewarded alike, 67% of them right: easier or harder tasks, more "
        "rollouts.samples or rl.refills help"
    )
    assert hints(settings, record) == ([told] if is_told else [])
    settings, batch = batch_of(tmp_path, "rl.filter=false")
    assert not hints(settings, answered(batch, [RIGHT, MIXED, WRONG]))


def test_answers_that_a_teacher_cannot_be_asked_about_are_not_counted_as_trained(tmp_path):
    settings = config("rollouts.prompts=3", "run.mode=distill", "distill.teacher.path=x")
    rewards = Rewards(settings, tmp_path, Judges())
    asker = Asker(settings, sources_of(settings, (None,)), encode)
    batch = RolloutBatch(settings, 5, 10, {}, asker, lambda ids: str(ids[0]), rewards, known=7)
    record = answered(batch, [(1, 2, NOBODY, 2), RIGHT, [NOBODY] * 4])
    assert record.is_trained_N.reshape(3, 4).tolist() == [[1, 1, 0, 1], [1] * 4, [0] * 4]
    assert record.state["update_tokens"] == [14] and record.counts["unknown_ids"] == 5
    told = [line for line in health.lines(settings, record) if "does not know" in line]
    assert told == ["batch 5: 5 of 12 answers have ids that the teacher does not know"]


def test_some_answers_are_kept_as_text_with_why_they_got_what_they_got(tmp_path):
    _, batch = batch_of(tmp_path, "rl.refills=0")
    record = answered(batch, [MIXED, RIGHT, WRONG])
    samples = list(batch.samples(record))
    record.write(folder_of(tmp_path, 5), samples)
    lines = (folder_of(tmp_path, 5) / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == samples
    best, worst = samples[:2]
    assert best["answer"] == "1" and best["reward"] == 1 and best["advantage"] > 0
    assert worst["answer"] == "2" and worst["reasons"]["verifier"] == "wrong"
    assert best["messages"][0]["content"] == "a 0"
    assert best["pieces"] == [["1", True]]
    found = RolloutRecord.read(folder_of(tmp_path, 5))
    np.testing.assert_array_equal(found.advantage_N, record.advantage_N)


def test_a_penalty_is_taken_off_the_rewards_before_they_are_compared(tmp_path):
    settings, batch = batch_of(tmp_path, "rl.refills=0", "rl.advantage.scale=none")
    record = answered(batch, [MIXED, RIGHT, WRONG])
    penalty_N = np.linspace(0, 1.1, 12)
    found = advantages_of(settings, record, penalty_N=penalty_N)
    rest = np.array([1, 0, 1, 0]) - penalty_N[:4]
    np.testing.assert_allclose(found[:4], rest - rest.mean(), rtol=1e-6)
    assert not found[4:].any()
