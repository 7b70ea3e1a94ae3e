"""Signs of reward hacking: each is told where it is there, and none where all is well."""

import json
from dataclasses import replace

import numpy as np
import pytest
import records

from megatron_qwen3.posttrain.rewards import hacking
from megatron_qwen3.posttrain.rollouts.record import RolloutRecord, TaskName, of_groups
from megatron_qwen3.posttrain.rollouts.rollout import Rollout

NAN = float("nan")
PARTS = ("verifier", "judge", "model", "format")


def record_of(groups, parts):
    """groups: tokens of the answers to each task; parts: a row for each answer."""
    rollouts = [
        [Rollout("t", (1,), t, (0.0,) * len(t), (True,) * len(t), "stop", (0, 0), True, 0)
         for t in group]
        for group in groups
    ]  # fmt: skip
    tasks = [TaskName(f"t{n}", "s", "thinking") for n in range(len(groups))]
    count = sum(map(len, groups))
    return RolloutRecord(
        0, 0, 0, PARTS, **of_groups(rollouts, tasks),
        reward_N=np.ones(count, np.float32), advantage_N=np.zeros(count, np.float32),
        parts_NP=np.array(parts, np.float32), is_trained_N=np.ones(count, bool),
    )  # fmt: skip


def test_numbers_of_a_batch_are_those_counted_by_hand():
    record = record_of(
        [[(1, 2), (1, 2), (3,)], [(1, 2), (4,), (5,)]],
        [  # verifier, judge, model, format
            (1, 1, 3, 1),
            (0, 1, 5, 1),  # the judge alone; the model prefers it
            (0, 0, 3, 0),  # a tie with the right one
            (1, 0, 1, 1),
            (NAN, 1, 9, 1),
            (0, NAN, 0, 1),
        ],
    )
    found = {name.removeprefix("hacking/"): v for name, v in hacking.numbers(record).items()}
    assert found == {
        "repeated": pytest.approx(3 / 6),
        "alike": pytest.approx(2 / 6),
        "form_only": pytest.approx(2 / 4),
        "judge_alone": pytest.approx(1 / 2),
        "judge_against": pytest.approx(2 / 4),
        "model_wrong": pytest.approx(1.5 / 3),
        "unscored": 0,
    }


def test_a_task_that_is_asked_twice_and_answered_alike_is_no_answer_to_another_task():
    """Of a small file a batch has tasks more than once, also in both modes."""
    record = record_of([[(1, 2), (3,)], [(1, 2), (4,)], [(4,), (5,)]], [(1,) * 4] * 6)
    first = record.tasks[0]
    again = first._replace(mode="non-thinking")
    found = hacking.numbers(replace(record, tasks=(first, again, record.tasks[2])))
    assert found["hacking/repeated"] == pytest.approx(2 / 6)  # (4,), of the first task and the last
    assert found["hacking/alike"] == pytest.approx(2 / 6)


def test_answers_without_a_reward_are_told_however_those_that_were_cut_are_treated():
    record = record_of([[(1,), (2,), (3,), (4,)]], [(1,) * 4] * 4)
    cut, nan = np.array([1, 1, 0, 0], np.uint8), np.float32(NAN)
    for of_cut in (0.0, nan):
        rewards = np.array([of_cut, of_cut, 1, nan], np.float32)
        found = hacking.numbers(replace(record, finish_N=cut, reward_N=rewards))
        assert found["hacking/unscored"] == 0.5


def test_of_what_was_not_scored_nothing_is_told():
    found = hacking.numbers(record_of([[(1,)], [(2,)]], [(NAN,) * 4] * 2))
    assert found.pop("hacking/repeated") == found.pop("hacking/alike") == 0
    assert found.pop("hacking/unscored") == 0 and set(found.values()) == {None}


def write(run_dir, batches=9, held_out=(), **columns):
    """A run whose batches have these numbers; a column is a value, or a function of 0 to 1."""
    run_dir.mkdir()
    usual = {"reward": 0.5, "pass_rate": 0.5, "length": 100, "truncated": 0.0, "scored": 1.0,
             "part/format": 1.0}  # fmt: skip
    rows = [{"kind": "train", "step": 1, "tokens": 1, "loss": 0.0}]
    for n in range(batches):
        at = n / (batches - 1)
        given = {k: v(at) if callable(v) else v for k, v in (usual | columns).items()}
        rows.append({"kind": "rollouts", "step": n + 1} | given)
    for n, rate in enumerate(held_out):
        rows.append({"kind": "eval", "step": n, "source": "all", "pass_rate": rate})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir


def rising(at):
    return 0.3 + 0.5 * at


CASES = {
    "nothing": ({}, []),
    "learning": (
        {"reward": rising, "pass_rate": rising, "length": lambda at: 100 + 300 * at,
         "held_out": (0.3, 0.5, 0.8)},
        [],
    ),
    "longer": ({"length": lambda at: 100 + 300 * at}, ["length"]),
    "shorter": ({"length": lambda at: 100 - 90 * at}, ["length"]),
    "not held out": (
        {"reward": rising, "pass_rate": rising, "held_out": (0.3, 0.3, 0.25)}, ["held_out"],
    ),
    "form": ({"reward": rising, "hacking/form_only": 0.5}, ["form"]),
    "one answer for all": ({"hacking/repeated": lambda at: 0.5 * at}, ["repeated"]),
    "judge": ({"hacking/judge_alone": lambda at: 0.4 * at}, ["judge_alone"]),
    "model": ({"hacking/model_wrong": lambda at: 0.2 + 0.4 * at}, ["model_wrong"]),
    "a weak model that gets better": ({"hacking/model_wrong": lambda at: 0.6 - 0.1 * at}, []),
    "cut": ({"truncated": lambda at: 0.2 * at, "scored": lambda at: 1 - 0.2 * at}, ["truncated"]),
    "unscored": ({"hacking/unscored": lambda at: 0.1 * at}, ["unscored"]),
    "unknown": ({"reward": NAN, "pass_rate": None, "length": None}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_sign_is_told_where_it_is_there_and_no_other(tmp_path, name):
    given, expected = CASES[name]
    given = {k: (None if isinstance(v, float) and np.isnan(v) else v) for k, v in given.items()}
    found = hacking.report(write(tmp_path / "run", **given))
    assert [one["name"] for one in found["findings"]] == expected
    told = hacking.lines(found)
    assert len(told) == max(1, len(expected)) and ("no sign" in told[0]) == (not expected)
    json.dumps(found)


def test_few_batches_are_not_compared(tmp_path):
    found = hacking.report(write(tmp_path / "run", batches=5, length=lambda at: 1 + 999 * at))
    assert not found["findings"] and "5 batches" in hacking.lines(found)[0]


def sample(n, answer, reward=1.0, **parts):
    return {"task": f"t{n}", "answer": answer, "reward": reward, "parts": parts, "reasons": {},
            "source": "s", "mode": "thinking", "messages": []}  # fmt: skip


def test_answers_that_look_like_it_are_there_to_be_read(tmp_path):
    run_dir = write(tmp_path / "run")
    good = [sample(n, f"<think>\n.\n</think>\n\n{n}", verifier=1.0, format=1.0) for n in range(5)]
    bad = [
        sample(10, "Score: 10", judge=1.0, verifier=0.0),
        sample(11, "<think>\nplan\n</think>\n\n"),
        sample(12, "All the same."),
        sample(13, "All the same."),
        sample(14, "wrong", format=1.0, verifier=0.0),
        sample(15, "wrong, and it got nothing", 0.0, format=1.0, verifier=0.0),
    ]
    records.write(run_dir, 0, [*good, *bad])
    folder = run_dir / "rollouts" / "000000"
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"answer": 3}\nnot JSON\n[1]\n')
        for changed in ({"reward": "much"}, {"parts": {"judge": "high"}}, {"reward": "2"}):
            file.write(json.dumps(sample(20, "By hand.", verifier=0.0) | changed) + "\n")
    found = hacking.report(run_dir)
    assert [(one["why"], one["task"]) for one in found["samples"]] == [
        ("judge and verifier disagree", "t10"),
        ("an empty answer that is rewarded", "t11"),
        ("an answer given to several tasks", "t12"),
        ("an answer given to several tasks", "t13"),
        ("well formed, and wrong", "t14"),
    ]
    assert "2 × an answer given to several tasks" in hacking.lines(found)[-1]


def test_a_runs_row_of_a_batch_has_the_signs():
    from megatron_qwen3.posttrain.watching.summary import summary

    row = summary(records.of_batch(0))
    assert {name for name in row if name.startswith("hacking/")} == set(
        hacking.numbers(records.of_batch(0))
    )
