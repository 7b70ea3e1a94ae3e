"""Rewards of rollouts: parts, weights, answers without a score; no bad answer hurts the run."""

import contextlib
import re
import time
from dataclasses import replace
from pathlib import Path

import golden
import pytest
from scripted import InProcess, thought

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.posttrain.evaluation.task import Task
from megatron_qwen3.posttrain.rewards import form, weights
from megatron_qwen3.posttrain.rewards.rewards import TRUNCATED, Rewards
from megatron_qwen3.posttrain.rollouts.rollout import Rollout
from megatron_qwen3.posttrain.verifiers import Verdict, Verifiers
from megatron_qwen3.settings import Config
from megatron_qwen3.settings_rl import RewardWeightsConfig, RlConfig
from megatron_qwen3.settings_rollouts import RolloutsConfig, TaskSourceConfig

SUM = Task("t", ({"role": "user", "content": "1 + 1?"},), {"kind": "numeric", "gold": 2}, "sums")
RIGHT, WRONG = thought("two", "It is 2."), thought("three", "It is 3.")


def config_of(weights=None, sources=(), **rl):
    table = RewardWeightsConfig(**(weights or {}))
    tasks = tuple(TaskSourceConfig(name, "x.jsonl", rewards=given) for name, given in sources)
    rollouts = RolloutsConfig(max_new_tokens=100, tasks=tasks)
    return replace(Config(), rl=RlConfig(rewards=table, **rl), rollouts=rollouts)


def rollout(tokens=10, finish="stop", thinking=True, **more):
    ids = tokens if isinstance(tokens, tuple) else tuple(range(tokens))
    size = len(ids)
    return Rollout(
        "t", (1,), ids, (0.0,) * size, (True,) * size, finish, (0, 0), thinking, 0, **more
    )


def score(config, *answered, verifiers=None, **more):
    rewards = Rewards(config, Path("/nowhere"), verifiers or InProcess())
    with rewards:
        return rewards, rewards.score(
            [(SUM, rollout(), t) if isinstance(t, str) else t for t in answered], **more
        )


def totals(config, *answered, **more):
    return [reward.total for reward in score(config, *answered, **more)[1]]


def test_a_right_answer_is_worth_its_weights_and_a_wrong_one_says_why():
    config = config_of({"verifier": 2.0, "format": 0.5})
    _, (right, wrong) = score(config, RIGHT, WRONG)
    assert right.total == 2.5 and wrong.total == 0.5
    assert right.parts == {"verifier": 1.0, "format": 1.0, "mode": 1.0} and not right.reasons
    assert wrong.parts["verifier"] == 0.0 and "3 is not 2" in wrong.reasons["verifier"]


def test_only_a_whole_point_of_a_verifier_counts():
    class Generous:
        def judge(self, pairs):
            return [Verdict(0.9, "almost") for _ in pairs]

    assert totals(config_of(), RIGHT, verifiers=Generous()) == [0.0]


def test_weights_of_a_source_take_the_place_of_the_runs_and_a_tasks_of_both():
    config = config_of({"verifier": 1.0, "format": 0.25}, [("sums", ("verifier=3", "mode=0.5"))])
    own = replace(SUM, rewards={"verifier": 5})
    assert totals(
        config, RIGHT, (own, rollout(), RIGHT), (replace(SUM, set="other"), rollout(), RIGHT)
    ) == [3.75, 5.75, 1.25]


@pytest.mark.parametrize("given", ["verifier", "verifer=1", "verifier=x", "verifier=nan", "=1"])
def test_a_weight_that_is_none_is_refused_in_one_line(given):
    with pytest.raises(ConfigError) as error:
        weights.parsed([given])
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="two weights"):
        weights.parsed(["verifier=1", "verifier=2"])


def test_an_answer_that_could_not_be_verified_has_no_reward_and_is_counted():
    class Late:
        def judge(self, pairs):
            return [Verdict(None, "time-out: no verdict after 30 s") for _ in pairs]

    rewards, (reward,) = score(config_of({"format": 1.0}), RIGHT, verifiers=Late())
    assert reward.total is None and reward.parts == {"verifier": None, "format": 1.0, "mode": 1.0}
    assert reward.reasons["verifier"].startswith("time-out")
    assert (
        rewards.unscored == {"verifier: time-out": 1} and "verifier: time-out: 1" in rewards.alarm()
    )


def test_an_alarm_is_of_the_answers_since_the_last_one():
    class Sometimes:
        late = 3

        def judge(self, pairs):
            return [Verdict(None, "time-out: 30 s")] * self.late + [Verdict(1.0, "")] * (
                len(pairs) - self.late
            )

    verifiers = Sometimes()
    with Rewards(config_of(), Path("/nowhere"), verifiers) as rewards:
        rewards.score([(SUM, rollout(), RIGHT)] * 200)
        assert rewards.alarm() == "3 of 200 answers have no reward (verifier: time-out: 3)"
        assert not rewards.alarm()
        verifiers.late = 1
        rewards.score([(SUM, rollout(), RIGHT)] * 100)
        assert not rewards.alarm()  # one in a hundred
        rewards.score([(SUM, rollout(), RIGHT)] * 99)
        assert rewards.alarm().startswith("1 of 99 answers")
        assert rewards.unscored == {"verifier: time-out": 5} and rewards.scored == 394


def test_a_part_that_raises_has_no_score_and_the_other_answers_theirs(monkeypatch):
    def raises(text, is_thinking):
        if "three" in text:
            raise ZeroDivisionError("of a library")
        return ""

    monkeypatch.setattr(form, "obedient", raises)
    rewards, (right, wrong) = score(config_of({"mode": 1.0}), RIGHT, WRONG)
    assert right.total == 2.0 and wrong.total is None
    assert wrong.reasons["mode"] == "error: ZeroDivisionError: of a library"
    assert rewards.unscored == {"mode: error": 1}


def test_verifiers_that_cannot_even_start_cost_the_scores_and_not_the_run():
    class Gone:
        def judge(self, pairs):
            raise BlockingIOError("no more processes")

    rewards, (reward,) = score(config_of({"format": 1.0}), RIGHT, verifiers=Gone())
    assert reward.total is None and "no more processes" in reward.reasons["verifier"]
    assert rewards.unscored == {"verifier: error": 1}


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_none(broken):
    _, (reward,) = score(config_of({"model": 1.0}), RIGHT, model_scores=[broken])
    assert reward.total is None and reward.parts["model"] is None


def test_a_verifier_that_hangs_is_killed_and_the_others_have_their_scores():
    """A regular expression that takes 2**60 steps, in C code."""
    hanging = replace(SUM, verifier={"kind": "json", "schema": {"pattern": "^(a+)+$"}})
    with Verifiers(workers=1, seconds=1) as verifiers:
        rewards, made = score(
            config_of(),
            (hanging, rollout(), f'"{"a" * 60}!"'),
            RIGHT,
            WRONG,
            verifiers=verifiers,
        )
    assert [reward.total for reward in made] == [None, 1.0, 0.0]
    assert rewards.unscored == {"verifier: time-out": 1}


@pytest.mark.parametrize("truncated, total", [("masked", None), ("zero", 0.0), ("scored", 1.0)])
def test_answers_that_were_cut_are_told_from_wrong_ones_and_treated_as_set(truncated, total):
    cut = (SUM, rollout(100, finish="length"), RIGHT)
    rewards, (reward, wrong) = score(config_of(truncated=truncated), cut, WRONG)
    assert reward.total == total and wrong.total == 0.0
    assert (reward.reasons.get("rollout") == TRUNCATED) == (truncated != "scored")
    assert rewards.unscored == ({TRUNCATED: 1} if total is None else {})
    assert not rewards.alarm()  # it is not that something failed


@pytest.mark.parametrize("finish", ["abort", "error"])
def test_a_rollout_that_failed_has_no_reward(finish):
    failed = (SUM, rollout(0, finish=finish, error="server gone"), "")
    rewards, (reward,) = score(config_of(truncated="scored"), failed)
    assert reward.total is None and "server gone" in reward.reasons["rollout"]
    assert rewards.unscored == {finish: 1} and rewards.alarm()


def test_the_reward_models_scores_come_from_outside_and_one_that_is_none_is_no_zero():
    config = config_of({"verifier": 0.0, "model": 0.5})
    assert totals(config, RIGHT, WRONG, model_scores=[3.0, None]) == [1.5, None]
    assert totals(config, RIGHT) == [None]


def test_a_task_that_nothing_could_score_is_refused_in_one_line():
    plain = replace(SUM, verifier={})
    cases = [
        ({}, plain, "has no verifier"),
        ({"verifier": 0.0}, SUM, "all weights of its reward are 0"),
        ({"judge": 1.0}, SUM, "neither gold nor checklist"),
        ({"judge": 1.0}, replace(SUM, gold="2"), "rl.judge.url"),
        ({"model": 1.0}, SUM, "rl.judge.model"),
        ({"language": 1.0}, replace(SUM, language="klingon"), "no known language"),
    ]
    for table, task, message in cases:
        with pytest.raises(ConfigError, match=message) as error:
            Rewards(config_of(table), Path("/nowhere")).check(task)
        assert "\n" not in str(error.value)
    Rewards(config_of(), Path("/nowhere")).check(SUM)


def test_lengths_count_what_the_model_wrote_and_not_what_a_tool_put():
    config = config_of({"verifier": 0.0, "overlong": 1.0}, overlong_tokens=50)
    asked = replace(rollout(100), sampled=(True,) * 75 + (False,) * 25, turns=2)
    assert totals(config, (SUM, rollout(75), RIGHT), (SUM, asked, RIGHT)) == [-0.5, -0.5]
    config = config_of({"verifier": 0.0, "repetition": 1.0}, repeated=2)
    asked = replace(rollout((1, 2, 3, 7, 7, 7)), sampled=(True,) * 3 + (False,) * 3)
    assert totals(config, (SUM, rollout((7,) * 5), RIGHT), (SUM, asked, RIGHT)) == [-0.75, 0.0]


@pytest.mark.parametrize("piece", ["\\[", "\\(", "$$ ", "`", "```\n", "<think>", "</think>"])
def test_no_text_keeps_those_who_look_at_its_form_busy(piece):
    """Seconds of the processor, for texts that a model may well write."""
    text = piece * (40_000 // len(piece))
    form.language_share(ENGLISH, "en", ENGLISH)  # loads the models
    begun = time.process_time()
    form.well_formed(text, True), form.obedient(text, True)
    form.language_share(thought(text, text), "en", ENGLISH)
    assert time.process_time() - begun < 1


RL = ("run.mode=rl", "train.steps=1", "run.device=cpu", "model.preset=tiny-dense")
SOURCE = 'rollouts.tasks=[{name="a",path="own:code",rewards=[REWARDS]}]'


@pytest.mark.parametrize(
    "given, message",
    [
        (("rl.rewards.verifier=0",), "rl.rewards: all weights are 0"),
        ((SOURCE.replace("REWARDS", '"verifier=0"'),), "rollouts.tasks.a.rewards: all weights"),
        ((SOURCE.replace("REWARDS", '"juge=1"'),), "rollouts.tasks.a.rewards: 'juge'"),
        ((SOURCE.replace("REWARDS", '"judge=x"'),), "'judge=x' is no weight"),
        (("rl.rewards.judge=1",), "judge = 1 needs a judge; set rl.judge.url"),
        ((SOURCE.replace("REWARDS", '"model=0.5"'),), "model = 0.5 needs a reward model"),
        (("rl.judge.url=localhost:8000/v1",), "valid: an address"),
        (
            ("rl.rewards.overlong=1", "rollouts.max_new_tokens=100"),
            "rl.overlong_tokens = 256 exceeds rollouts.max_new_tokens = 100",
        ),
    ],
)
def test_settings_that_reward_nothing_are_refused_before_any_rank_starts(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load([], [*RL, *given])


def test_a_source_may_take_what_the_run_cannot_give():
    config = load([], [*RL, "rl.rewards.judge=1", SOURCE.replace("REWARDS", '"judge=0"')])
    assert config.rollouts.tasks[0].rewards == ("judge=0",)


# -- form -----------------------------------------------------------------------------------------


def both(text, mode):
    is_thinking = mode == "think"
    return not form.well_formed(text, is_thinking) and not form.obedient(text, is_thinking)


@pytest.mark.parametrize("case", golden.cases("verifiers.json", "think_format"))
def test_format_and_mode_together_are_the_golden_think_format(case):
    assert both(case["answer"], case["args"]["mode"]) == case["expected"]


def trl_accepts(text):
    """TRL's think_format_reward, by its pattern."""
    return bool(re.match(r"^<think>(?!.*<think>)(.*?)</think>.*$", text, re.DOTALL))


@pytest.mark.parametrize(
    "text, theirs, ours",
    [
        (thought("plan", "answer"), True, True),
        ("<think>\nplan\n</think>\n\n", True, False),  # nothing follows
        ("<think>\n\n</think>\n\nanswer", True, False),  # an empty block is no thinking
        ("<think>\nplan\n</think>\nanswer</think>", True, False),  # two closings
        ("\n<think>\nplan\n</think>\n\nanswer", False, True),  # a newline before is no fault
        ("<think>plan", False, False),
        ("<think>a</think><think>b</think> c", False, False),
        ("so: <think>plan</think> answer", False, False),
        ("plan</think> answer", False, False),
        ("answer", False, False),
    ],
)
def test_each_difference_from_trls_think_format_is_known(text, theirs, ours):
    assert (trl_accepts(text), both(text, "think")) == (theirs, ours)


def test_format_and_mode_are_two_things():
    empty = "<think>\n\n</think>\n\nanswer"
    assert not form.well_formed(empty, True) and form.obedient(empty, True)
    assert not form.well_formed(empty, False) and not form.obedient(empty, False)
    assert not form.well_formed("answer", False) and form.well_formed("answer", True)
    cut = "<think>\nplan"
    assert form.well_formed(cut, True) and not form.obedient(cut, True)
    assert not form.well_formed(RIGHT, False) and form.obedient(RIGHT, False)
    assert form.well_formed("", False) and form.well_formed(" \n", False)


def test_of_several_turns_the_last_one_is_looked_at():
    turn = "<|im_end|>\n<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>\n"
    text = f"{thought('ask', 'calling')}{turn}<|im_start|>assistant\n{RIGHT}<|im_end|>"
    assert form.last_turn(text, turns=2) == RIGHT
    assert form.last_turn(f"{RIGHT}<|im_end|>\n") == RIGHT


ENGLISH = "The river flows slowly past the old mill, and the children watch the boats go by. " * 3
GERMAN = (
    "Der Fluss zieht langsam an der alten Mühle vorbei, und die Kinder sehen den Booten zu. " * 3
)


@pytest.mark.parametrize(
    "text, language, low, high",
    [
        (thought(ENGLISH, ENGLISH), "en", 1.0, 1.0),
        (thought(ENGLISH, ENGLISH), "", 1.0, 1.0),  # as the question
        (thought(ENGLISH, GERMAN), "en", 0.0, 0.0),
        (thought(GERMAN, ENGLISH), "en", 0.0, 0.0),
        (thought(ENGLISH, ENGLISH + "这条河慢慢流过" * 12), "en", 0.2, 0.95),
        (thought(ENGLISH, "42"), "en", 1.0, 1.0),
        (thought(ENGLISH, "四十二"), "en", 0.0, 0.0),  # too short to be named: by its script
        (thought("想一想", "四十二"), "zh", 1.0, 1.0),
        ("", "en", 1.0, 1.0),
    ],
)
def test_language_is_that_of_thinking_and_answer(text, language, low, high):
    share, reason = form.language_share(text, language, ENGLISH)
    assert low <= share <= high and bool(reason) == (share < 1)


def test_verifiers_are_as_many_as_the_processors_of_the_job(monkeypatch):
    """Of a node that is shared, not as many as the machine has."""
    started = []

    def starting(workers, seconds):
        started.append(workers)
        return contextlib.nullcontext(InProcess())

    monkeypatch.setattr("megatron_qwen3.posttrain.rewards.rewards.Verifiers", starting)
    monkeypatch.setattr("megatron_qwen3.posttrain.rewards.rewards.cores", lambda: 3)
    for settings in (config_of(), config_of(verify_workers=2)):
        with Rewards(settings, Path("/nowhere")):
            pass
    assert started == [3, 2]
