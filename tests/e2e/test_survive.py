"""Runs that are stopped, hang, meet bad data or lose a rank, through the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import broken
import pytest
import torch
from ranks import run_ranks
from runs import arguments, run

from megatron_qwen3 import train
from megatron_qwen3.storage import folder
from megatron_qwen3.training import engine
from megatron_qwen3.training.hang import HUNG
from megatron_qwen3.training.history import RunHistory
from megatron_qwen3.training.stop import CONTINUE


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return broken.corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(settings, tmp_path_factory):
    home = tmp_path_factory.mktemp("whole")
    assert run_ranks(run, 2, arguments(settings, home)) == [0, 0]
    return broken.losses(home / "run")


def run_and_signal(arguments, rank, number, at_step):
    """One rank alone is told to stop, in the middle of a step."""
    train_step, done = engine.Engine.train_step, []

    def told(self, *args):
        done.append(None)
        if len(done) == at_step and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), number)
        return train_step(self, *args)

    engine.Engine.train_step = told
    return train.main(arguments), len(done)


@pytest.mark.parametrize(
    "number", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_to_one_rank_makes_all_save_the_same_step_and_stop(
    settings, undisturbed, tmp_path, number
):
    asked = arguments(settings, tmp_path)
    assert run_ranks(run_and_signal, 2, asked, 1, number, 5) == [(CONTINUE, 5), (CONTINUE, 5)]
    assert folder.step_of(folder.newest(tmp_path / "run")) == 5
    assert train.main([*asked, "--finished"]) == CONTINUE
    assert run_ranks(run, 2, asked) == [0, 0]
    assert broken.losses(tmp_path / "run") == undisturbed
    assert train.main([*asked, "--finished"]) == 0


def test_a_time_limit_stops_after_a_step_and_the_next_start_goes_on(
    settings, undisturbed, tmp_path
):
    limit = ("run.time_limit_minutes=0.001", "run.stop_early_seconds=0")
    for done in (1, 2):
        assert run_ranks(run, 2, arguments(settings, tmp_path, *limit)) == [CONTINUE] * 2
        assert broken.losses(tmp_path / "run") == undisturbed[:done]


def bad_steps(arguments, *bad, stop_at=None):
    """A run in which the loss of some steps is not a number, killed in step `stop_at`."""
    from megatron_qwen3.training import run

    train_step, current = engine.Engine.train_step, []

    def step_of(config, step):
        current[:] = [step + 1]
        return rate(config, step)

    def poisoned(self, batch, objective, *args):
        def no_numbers(outputs, micro):
            return {n: x * torch.nan for n, x in objective.values(outputs, micro).items()}

        if current[0] == stop_at:
            raise OSError("power cut")
        is_bad = current[0] in bad
        asked = replace(objective, values=no_numbers) if is_bad else objective
        return train_step(self, batch, asked, *args)

    rate, run.learning_rate = run.learning_rate, step_of
    engine.Engine.train_step = poisoned
    try:
        return train.main(arguments)
    except OSError:
        return "cut"


@pytest.fixture(scope="module")
def skipped(settings, tmp_path_factory):
    """The folder of a run that left out its bad seventh step alone."""
    home = tmp_path_factory.mktemp("skipped")
    asked = arguments(settings, home, "guard.bad_batch=skip")
    assert run_ranks(run_bad_7, 2, asked) == [0, 0]
    return home / "run"


@pytest.mark.parametrize(
    ("action", "trained"),
    [
        pytest.param(
            "skip",
            [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16],
            marks=pytest.mark.slow,
        ),
        ("rollback", [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16]),
    ],
)
def test_a_bad_batch_is_left_out_alike_by_a_run_that_is_killed_and_one_that_is_not(
    settings, undisturbed, skipped, tmp_path, action, trained
):
    """Saved after step 4: rollback undoes 5 and 6, leaves out 5 to 7, and goes on with 8."""
    first = 4 if action == "rollback" else 6
    more = (f"guard.bad_batch={action}", f"checkpoint.every_steps={4 if first == 4 else 2}")
    whole, cut = skipped if action == "skip" else tmp_path / "whole" / "run", tmp_path / "run"
    if action == "rollback":
        asked = arguments(settings, tmp_path / "whole", *more)
        assert run_ranks(run_bad_7, 2, asked) == [0, 0]
    asked = arguments(settings, tmp_path, *more)
    assert run_ranks(killed_after_bad, 2, asked) == ["cut", "cut"]
    assert run_ranks(run_bad_7, 2, asked) == [0, 0]
    losses = {run_dir: dict(broken.losses(run_dir)) for run_dir in (whole, cut)}
    for run_dir in (whole, cut):
        (left_out,) = map(json.loads, (run_dir / "left_out.jsonl").read_text().splitlines())
        assert (left_out["first"], left_out["last"]) == (first, 6)
        assert "step 7: the loss is not finite" in left_out["reason"]
    later = [step for step in trained if step > 7]
    assert [losses[cut][s] for s in later] == [losses[whole][s] for s in later]
    assert list(losses[whole]) == trained
    assert losses[whole][8] != dict(undisturbed)[8]
    tokens = (16 - (7 - first)) * broken.BATCH * broken.LENGTH
    assert RunHistory.read(whole).tokens == tokens  # as the report has it, too


def killed_after_bad(arguments):
    return bad_steps(arguments, 7, stop_at=8)


def run_bad_7(arguments):
    return bad_steps(arguments, 7)


def test_left_out_batches_are_stepped_over_exactly(settings, skipped, tmp_path):
    """The step after a rollback is that of the checkpoint's weights on the batch after."""
    asked = arguments(settings, tmp_path, "guard.bad_batch=rollback", "checkpoint.every_steps=6")
    assert run_ranks(run_bad_7, 2, asked) == [0, 0]  # both leave out step 7 alone
    assert broken.losses(tmp_path / "run") == broken.losses(skipped)


def test_a_hang_ends_with_every_ranks_place_and_collective(settings, tmp_path):
    log = tmp_path / "log.txt"
    asked = arguments(settings, tmp_path, "guard.hang_seconds=3")
    assert broken.Launch(asked, 2, log, change="hanging").wait() == [HUNG, HUNG], log.read_text()
    hung = sorted(line for line in log.read_text().splitlines() if line.startswith("hung: "))
    assert len(hung) == 2, log.read_text()
    assert "rank 0" in hung[0] and "nothing for 3 s since step 2" in hung[0]
    assert "waits for all_reduce number" in hung[0] and "model.py" in hung[0]
    assert "rank 1" in hung[1] and "time.sleep(100)" in hung[1]
    assert hung[1].endswith("in no collective")
    stacks = (tmp_path / "run" / "hang" / "rank_0.txt").read_text()
    assert "train_step" in stacks and "gloo:all_reduce" in stacks


@pytest.mark.slow
def test_torchrun_starts_all_ranks_again_when_one_is_killed(settings, undisturbed, tmp_path):
    """Within its budget, from the newest checkpoint that is whole; half-written ones go."""
    asked = arguments(settings, tmp_path)
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--max-restarts=2", "--nproc-per-node=2", "-m", "megatron_qwen3.train"]
    process = subprocess.Popen([*command, *asked], stdout=subprocess.PIPE, text=True)
    killed = 0
    for after in (5, 11):
        while len(done(tmp_path)) < after:
            assert process.poll() is None
            time.sleep(0.01)
        (tmp_path / "run" / "checkpoints" / "step_00000099.partial").mkdir(exist_ok=True)
        ranks = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
        os.kill(int(ranks[-1]), signal.SIGKILL)
        killed += 1
    told, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and killed == 2
    assert told.count("resumed from") == 2, told
    assert broken.losses(tmp_path / "run") == undisturbed
    assert not list((tmp_path / "run" / "checkpoints").glob("*.partial"))


def done(home):
    try:
        return broken.losses(home / "run")
    except (OSError, ValueError):
        return []
