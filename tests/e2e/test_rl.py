"""Mode rl through the command line: it resumes to the bit, and its rollouts are the policy's."""

import math
import shutil
from dataclasses import replace

import broken
import chaos
import numpy as np
import pytest
from ranks import RankError, run_ranks
from runs import arguments, paused_loads, power_cut, rows, run, told_by

from megatron_qwen3 import train
from megatron_qwen3.config import load, to_toml
from megatron_qwen3.posttrain import rl
from megatron_qwen3.posttrain.rewards.rewards import Rewards
from megatron_qwen3.posttrain.rollouts import environments
from megatron_qwen3.posttrain.rollouts import record as records
from megatron_qwen3.posttrain.rollouts.record import RolloutRecord, folder_of
from megatron_qwen3.storage.folder import checkpoints, step_of
from megatron_qwen3.training import engine
from megatron_qwen3.training.hang import Heartbeat
from megatron_qwen3.training.stop import CONTINUE

MORE = ("train.steps=6", "eval.every_steps=3", "rollouts.held_out=0.2", "rollouts.eval_prompts=3")
KEPT = "rollouts.keep_arrays=true"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Of a short run on a few tasks."""
    return [*broken.tasks(tmp_path_factory.mktemp("tasks")), *MORE, KEPT]


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    home = tmp_path_factory.mktemp("whole")
    assert run_ranks(run, 2, arguments(settings, home)) == [0, 0]
    return home / "run"


def test_a_finished_run_says_what_it_did(settings, whole):
    asked = arguments(settings, whole.parent)
    assert load([whole / "config.toml"]) == load([], asked)
    assert to_toml(load([whole / "config.toml"])) == (whole / "config.toml").read_text()
    steps, config = rows(whole, "train"), load([], asked)
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    sampled = rows(whole, "rollouts")
    assert [row["step"] for row in sampled] == [1, 3, 5]
    tokens = 0
    for batch in records.batches(whole):
        record = RolloutRecord.read(folder_of(whole, batch))
        assert record.state["tokens"] == tokens and record.trained_tokens_N.any()
        for update, share in enumerate(record.updates(2, config.run.seed)):
            tokens += int(record.trained_tokens_N[share].sum())
            assert steps[2 * batch + update]["tokens"] == tokens
        assert len(record) % config.rollouts.samples == 0
        assert (record.versions_N2 == 2 * batch).all() and record.sampled_step == 2 * batch
    evaluated = {(row["step"], row["source"]) for row in rows(whole, "eval")}
    assert evaluated == {(step, n) for step in (3, 6) for n in ("letters", "mode thinking", "all")}


def test_before_a_batchs_first_update_the_policy_is_what_it_was_and_what_sampled(whole):
    for row in rows(whole, "train"):
        if row["step"] % 2:
            assert row["ratio"] == pytest.approx(1, abs=1e-6)
            assert row["policy_change"] < 1e-8 and row["clip_share"] == 0
        else:
            assert row["policy_change"] > 1e-8
        assert row["mismatch"] <= row["mismatch_max"] < 1e-5 and row["mismatch_kl"] < 1e-8


def same(run_dir, other):
    """Whether two runs have the same losses, evaluations and rollouts, to the bit."""
    assert broken_losses(run_dir) == broken_losses(other)
    assert rows(run_dir, "eval") == rows(other, "eval")
    for batch in records.batches(other):
        one, two = (RolloutRecord.read(folder_of(home, batch)) for home in (run_dir, other))
        for name in records._DTYPES:
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert one.state == two.state


def broken_losses(run_dir):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows(run_dir, "train")]


@pytest.mark.parametrize("at_step", [4, pytest.param(5, marks=pytest.mark.slow)])
def test_a_run_that_was_cut_off_goes_on_as_if_undisturbed(settings, whole, tmp_path, at_step):
    """In the middle of a batch, whose old log-probs later weights cannot say, and at its start."""
    asked = arguments(settings, tmp_path, "checkpoint.every_steps=1")
    with pytest.raises(RankError, match="power cut"):
        run_ranks(power_cut, 2, asked, at_step)
    assert run_ranks(run, 2, asked) == [0, 0]
    same(tmp_path / "run", whole)


@pytest.mark.parametrize("at", [pytest.param("batch 1", marks=pytest.mark.slow), "evaluation"])
def test_a_stop_is_heard_between_the_passes_of_rollouts(settings, whole, tmp_path, at):
    """A batch may take longer than the time between a request and the end."""
    refit, step, batches = {"batch 1": (2, 2, [0]), "evaluation": (3, 3, [0, 1])}[at]
    asked = arguments(settings, tmp_path, "checkpoint.every_steps=50")
    assert run_ranks(broken.terminated, 2, asked, refit) == [CONTINUE] * 2
    assert records.batches(tmp_path / "run") == batches
    assert [step_of(path) for path in checkpoints(tmp_path / "run")] == [step]
    assert run_ranks(run, 2, asked) == [0, 0]
    same(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_run_goes_on_in_another_layout(settings, whole, tmp_path):
    asked = arguments(settings, tmp_path, "checkpoint.every_steps=1", "train.steps=4")
    with pytest.raises(RankError, match="power cut"):
        run_ranks(power_cut, 2, asked, 4)
    more = ("parallel.tensor=2", "parallel.expert=2")
    assert run_ranks(run, 2, [*asked, *more]) == [0, 0]
    found, expected = (broken_losses(home)[3] for home in (tmp_path / "run", whole))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_rollouts_of_older_weights_are_sampled_ahead_and_survive(settings, tmp_path):
    """With a lag of one, batch k was sampled by the weights before the updates of k - 1."""
    asked = ("rollouts.lag=1", "checkpoint.every_steps=1")
    homes = tmp_path / "whole", tmp_path / "cut"
    assert run_ranks(run, 1, arguments(settings, homes[0], *asked)) == [0]
    with pytest.raises(RankError, match="power cut"):
        run_ranks(power_cut, 1, arguments(settings, homes[1], *asked), 4)
    assert run_ranks(run, 1, arguments(settings, homes[1], *asked)) == [0]
    same(homes[1] / "run", homes[0] / "run")
    versions = [RolloutRecord.read(folder_of(homes[0] / "run", n)).versions_N2 for n in range(3)]
    assert [set(v.flatten()) for v in versions] == [{0}, {0}, {2}]
    found = rows(homes[0] / "run", "train")
    assert [row["mismatch"] > 1e-5 for row in found] == [False, False, True, True, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["kill", "in save", "kill all", *chaos.OF_ROLLOUTS])
def test_a_run_that_is_killed_loses_no_bit(tmp_path, way):
    (result,) = chaos.play(tmp_path, 1, 7, 2, (way,), mode="rl")
    assert result.broke and not result.lost, result


ALL_ALIKE = ("rl.rewards.verifier=0.0", "rl.rewards.format=1.0")  # random weights have no form


def test_tasks_that_teach_nothing_are_told_and_end_the_run_in_time(settings, tmp_path):
    asked = [*arguments(settings, tmp_path, "rl.most_empty=1", "rl.refills=0"), *ALL_ALIKE]
    ((status, told),) = run_ranks(told_by, 1, asked)
    assert status == 1
    assert "batch 0: nothing to train: the answers of each of 4 tasks were rewarded alike" in told
    assert "step 1: no rollout is left to train" in told
    assert "stopped: batch 1: 2 batches in a row left nothing to train, the last since" in told


def test_truncated_answers_alone_are_told_as_that(settings, tmp_path):
    more = ("rl.truncated=masked", "rl.most_empty=1", "rollouts.max_new_tokens=1", "rl.refills=0")
    ((status, told),) = run_ranks(told_by, 1, arguments(settings, tmp_path, *more))
    assert status == 1 and "of 16 answers reached rollouts.max_new_tokens = 1" in told
    assert "stopped: batch 1: nearly all answers of 2 batches in a row reached rollouts.m" in told


def bad_update(arguments):
    """A run whose third update has a loss that is not finite."""
    objective, calls = rl.policy_objective, []

    def spoiled(*args):
        made = objective(*args)
        calls.append(None)
        if len(calls) != 3:
            return made
        values = made.values

        def with_nan(outputs, batch):
            found = values(outputs, batch)
            return {**found, "policy_loss": found["policy_loss"] * math.nan}

        return engine.Objective(made.head, with_nan, made.losses, made.metrics, made.largest)

    rl.policy_objective = spoiled
    return told_by(arguments)


@pytest.mark.parametrize("way", [pytest.param("skip", marks=pytest.mark.slow), "rollback"])
def test_a_bad_update_is_left_out(settings, whole, tmp_path, way):
    asked = arguments(settings, tmp_path, f"guard.bad_batch={way}", "checkpoint.every_steps=2")
    ((status, told),) = run_ranks(bad_update, 1, asked)
    assert status == 0
    assert "left out: step 3: the loss is not finite" in told and "rollouts are of batch 1" in told
    found = rows(tmp_path / "run", "train")
    assert [row["step"] for row in found] == [1, 2, 4, 5, 6]
    record = RolloutRecord.read(folder_of(tmp_path / "run", 1))
    assert found[2]["tokens"] == record.state["tokens"] + record.state["update_tokens"][1]


def test_the_reference_is_the_policy_at_the_start(settings, whole, tmp_path):
    more = (f"checkpoint.init_from={whole}", "rl.kl.coefficient=0.01", "train.steps=2")
    assert run_ranks(run, 1, arguments(settings, tmp_path, *more, "rl.updates=1")) == [0]
    found = rows(tmp_path / "run", "train")
    assert abs(found[0]["kl"]) < 1e-8 and found[1]["kl"] > 1e-8
    assert found[0]["ratio"] == 1 and not list((tmp_path / "run").glob("rollouts/*/old.npz"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("rollouts.tasks=[]", "rollouts.tasks is empty"),
        (
            "rollouts.tasks=[{name='x',path='own:json',mode='think'}]",
            "mode of 'x' = \"think\" is not one of thinking, non_thinking, mixed",
        ),
        ("data.tokenizer=", "data.tokenizer is needed to ask tasks"),
        ("rollouts.rows=2", "rollouts.samples = 4 exceeds rollouts.rows = 2"),
        ("parallel.context=2", 'set rollouts.engine = "vllm", or parallel.context = 1'),
        ("rollouts.max_new_tokens=64", "leaves no room for a prompt in data.sequence_length = 64"),
        ("data.sequence_length=16", "tasks of 'letters' has room in a row: the shortest prompt"),
        ("rollouts.engine=vllm", "needs rollouts.vllm.python, to start servers, or"),
        (
            "rl.kl.coefficient=0.1",
            "needs a reference: set rl.kl.reference, or checkpoint.init_from",
        ),
        ("rl.advantage.baseline=none rollouts.samples=1", "has nothing to compare an answer with"),
        ("optim.z_loss=0.1", 'no part of the objectives of run.mode = "rl"'),
        ("rollouts.thinking_budget=12", "thinking_budget = 12 leaves no room for an answer in"),
        ("checkpoint.init_from=nowhere", "neither a checkpoint nor a run folder"),
    ],
)
def test_a_wrong_input_is_told_before_any_rank_starts(settings, tmp_path, capsys, change, says):
    assert train.main(arguments(settings, tmp_path, *change.split(" "))) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_judge_that_is_not_there_ends_all_ranks(settings, tmp_path):
    """Or the others would wait for the first one until somebody ends them."""
    for name in ("", "judge"):  # which models are served is asked where none is named
        more = ("rl.judge.tries=1", f"rl.judge.name={name}")
        asked = arguments(settings, tmp_path, "rl.judge.url=http://127.0.0.1:9/v1", *more)
        (status, told), (others, _) = run_ranks(told_by, 2, asked)
        assert status == others == 2
        assert "error: rl.judge.url = http://127.0.0.1:9/v1 cannot be reached (Connec" in told
        assert not (tmp_path / "run" / "rollouts").exists()


def without_a_look(arguments):
    """A run whose tools went between the check and the start."""
    environments.check = lambda settings: None
    return train.main(arguments)


def test_tools_that_are_not_there_end_all_ranks(settings, tmp_path):
    more = ("rollouts.agent.environment=search", "rollouts.agent.corpus=nowhere.jsonl")
    assert run_ranks(without_a_look, 2, arguments(settings, tmp_path, *more)) == [2, 2]


def test_a_damaged_record_is_told_with_the_way_out(settings, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    asked = arguments(settings, tmp_path, "train.steps=7")
    (folder_of(tmp_path / "run", 2) / "record.json").write_text('{"version": 9}')
    ((status, told),) = run_ranks(told_by, 1, asked)
    assert status == 0 and "sampled again: batch 2" in told
    assert train.main([*asked, "--finished"]) == 0


def test_a_run_does_not_go_on_with_other_updates_of_a_batch(settings, whole, tmp_path, capsys):
    """Step 6 of one update each would be batch 6, and of four batch 1, that was trained on."""
    shutil.copytree(whole, tmp_path / "run")
    assert train.main(arguments(settings, tmp_path, "rl.updates=4", "train.steps=9")) == 2
    told = capsys.readouterr().err
    assert "rl.updates = 4, but" in told and "was made for 2, which a run keeps" in told


def watched(arguments):
    """Whether a hang is looked for while answers are rewarded, of training and of evaluations."""
    hearts, looks, score, enter = [], [], Rewards.score, Heartbeat.__enter__

    def noting(self):
        hearts.append(self)
        return enter(self)

    def looking(self, *args):
        looks.append(not hearts[0]._pauses)
        return score(self, *args)

    Heartbeat.__enter__, Rewards.score = noting, looking
    assert told_by(arguments)[0] == 0
    return looks


def test_the_time_of_judges_is_no_hang(settings, tmp_path):
    """They have limits of their own: so many tries of so many seconds."""
    asked = arguments(settings, tmp_path, "train.steps=1", "eval.every_steps=1", "rl.updates=1")
    (looks,) = run_ranks(watched, 1, asked)
    assert len(looks) >= 2 and not any(looks)


def test_a_reference_is_loaded_as_long_as_that_takes(settings, whole, tmp_path):
    more = ("train.steps=1", "rl.updates=1", "rl.kl.coefficient=0.1", f"rl.kl.reference={whole}")
    assert run_ranks(paused_loads, 1, arguments(settings, tmp_path, *more)) == [[False]]


@pytest.mark.parametrize("step", [2, 3])
def test_log_probs_before_a_first_update_that_comes_again_are_said_again(whole, tmp_path, step):
    """Other weights may come to it: after a rollback, or with other settings."""
    shutil.copytree(whole, tmp_path / "run")
    assert (folder_of(tmp_path / "run", 1) / "old.npz").exists()
    assert records.clean(tmp_path / "run", step) == [2]
    assert (folder_of(tmp_path / "run", 1) / "old.npz").exists() == (step == 3)
    assert (folder_of(tmp_path / "run", 0) / "old.npz").exists()


def answers_counted(arguments):
    """Of each update the answers that are trained, and those that are not, with one rejected."""
    counts, objective = [], rl.policy_objective

    def rejecting(batch, _):
        weights_BS = batch.weights_BS.clone()
        weights_BS[0, batch.extra["sequence"][0] == 0] = 0
        return replace(batch, weights_BS=weights_BS)

    def counting(config, sequences, masked, *more):
        counts.append((sequences, masked))
        return objective(config, sequences, masked, *more)

    rl.without_rejected, rl.policy_objective = rejecting, counting
    assert told_by(arguments)[0] == 0
    return counts


def test_an_answer_that_is_rejected_whole_is_one_of_the_masked(settings, tmp_path):
    (counts,) = run_ranks(answers_counted, 1, arguments(settings, tmp_path, "train.steps=2"))
    assert counts == [(7, 1), (7, 1)]
