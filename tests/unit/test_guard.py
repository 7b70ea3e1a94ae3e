"""Guards without ranks: limits, batches left out, stop requests, slow ranks, advice."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.training import stop
from megatron_qwen3.training.bad_batch import BadBatch, StepLimits
from megatron_qwen3.training.failures import explain
from megatron_qwen3.training.guard import Guard, rise
from megatron_qwen3.training.progress import LeftOut, Progress
from megatron_qwen3.training.stop import StopRequest
from megatron_qwen3.training.watch import Watch


def config_of(tmp_path, *more):
    return load([], ["model.preset=tiny-dense", "train.steps=100", f"run.dir={tmp_path}", *more])


def accepted(guard, count=16, loss=2.0, norm=1.0):
    for _ in range(count):
        guard.accept({"loss": loss, "grad_norm": norm})


def test_limits_are_above_the_median_of_recent_steps(tmp_path):
    guard = Guard(config_of(tmp_path, "guard.loss_spike=0.5", "guard.grad_spike=4"), Progress())
    accepted(guard, 15)
    assert guard.limits() == StepLimits()
    accepted(guard, 1, loss=90, norm=90)
    assert guard.limits() == StepLimits(loss=2.5, grad_norm=4.0)
    assert Guard(config_of(tmp_path), guard.progress(16)).limits() == StepLimits()  # off by default


def test_a_resumed_guard_decides_as_the_one_that_was_saved(tmp_path):
    config = config_of(tmp_path, "guard.loss_spike=0.1", "guard.window_steps=20")
    guard = Guard(config, Progress())
    for step in range(50):
        guard.accept({"loss": 1 / (step + 3), "grad_norm": 0.1 * step})
    guard.leave_out(50, 50, "bad", writes=False)
    saved = guard.progress(51)
    (tmp_path / "progress.json").write_text(saved.to_json())
    again = Progress.read(tmp_path)
    assert again == saved and again.updates == 50
    assert Guard(config, again).limits() == guard.limits()


def test_what_is_left_out_survives_a_kill_before_the_next_checkpoint(tmp_path):
    config = config_of(tmp_path)
    config.run_dir.mkdir()
    Guard(config, Progress()).leave_out(4, 9, "a spike", writes=True)
    again = Guard(config, Progress(step=4))
    assert [again.next_step(step) for step in (3, 4, 7, 10)] == [3, 10, 10, 10]
    assert again.progress(10).updates == 4
    assert again.left_out == [LeftOut(4, 9, "a spike")]


def test_a_list_of_another_run_steers_none_that_begins_anew(tmp_path):
    config = config_of(tmp_path)
    config.run_dir.mkdir()
    Guard(config, Progress(step=1)).leave_out(0, 50, "of another run", writes=True)
    fresh = Guard(config, Progress())
    assert fresh.next_step(0) == 0 and fresh.left_out == []


def test_a_full_disk_does_not_end_a_run_that_leaves_a_batch_out(tmp_path):
    config = config_of(tmp_path)  # whose folder is not there, so that nothing can be written
    guard = Guard(config, Progress(step=4))
    assert "left_out.jsonl cannot be written" in guard.leave_out(4, 4, "bad", writes=True)
    assert guard.next_step(4) == 5


def test_a_loss_that_has_risen_is_told_from_one_that_is_noisy():
    def recent(*losses):
        return [(loss, 1.0) for loss in losses]

    assert rise(()) == rise(recent(2.0)) == 0.0
    falling = [3 - 0.01 * step for step in range(64)]
    assert rise(recent(*falling)) == 0.0
    assert rise(recent(*falling, 9.0)) < 0.1  # one spike
    assert rise(recent(*falling, 4.0, 6.0, 8.0, 9.0)) == pytest.approx(7.0 - 2.385)


@pytest.mark.parametrize("line", ['{"first":', '{"first": 1}', "[]"])
def test_a_damaged_list_of_what_is_left_out_is_named(tmp_path, line):
    config = config_of(tmp_path)
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "left_out.jsonl").write_text(f"{line}\n")
    with pytest.raises(ConfigError, match=r"left_out\.jsonl is not a list of batches left out"):
        Guard(config, Progress(step=1))


def test_too_many_bad_batches_stop_the_run_but_rare_ones_do_not(tmp_path):
    config = config_of(tmp_path, "guard.window_steps=16", "guard.most_bad_batches=2")
    guard = Guard(config, Progress())
    for step in (10, 30, 50, 60):
        guard.leave_out(step, step, "bad", writes=False)
    with pytest.raises(BadBatch, match="3 bad batches within 16 steps.*most_bad_batches = 2"):
        guard.leave_out(65, 65, "bad", writes=False)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_asks_for_a_stop(tmp_path, name):
    heard = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {s: signal.getsignal(s) for s in heard}
    try:
        for number in heard:  # a shell that starts tests in the background lets them ignore SIGINT
            signal.signal(number, signal.SIG_DFL)
        request = StopRequest(config_of(tmp_path))
        assert request.reason(1.0) == 0
        os.kill(os.getpid(), signal.Signals[name])
        assert stop.told(request.reason(1.0)) == name
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_time_limit_leaves_room_for_a_step_and_the_save(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    config = config_of(tmp_path, "run.time_limit_minutes=10", "run.stop_early_seconds=100")
    assert StopRequest(config).reason(490) == 0
    assert stop.told(StopRequest(config).reason(510)) == "the time limit"
    without = replace(config, run=replace(config.run, time_limit_minutes=0.0))
    assert StopRequest(without).reason(1e9) == 0
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 130))
    assert StopRequest(config).reason(10) == 0
    assert stop.told(StopRequest(without).reason(40)) == "the time limit"


def test_a_slow_rank_is_named_with_its_host_and_compared_within_its_stage():
    watch = Watch([f"n{rank}" for rank in range(8)], stages=2, slow_rank=1.3, steps=3)
    seconds = [1.0, 1.0, 1.5, 1.0, 3.0, 3.0, 3.0, 3.1]  # the second stage has more to do
    assert [watch.slow_ranks(seconds) for _ in range(2)] == ["", ""]
    told = watch.slow_ranks(seconds)
    assert told.startswith("slow: rank 2 on n2 1.50 times the median of its stage (1 to 3.1 s")
    assert "rank 7" not in told
    once = [watch.slow_ranks(s) for s in (seconds, [1.0] * 8, [1.0] * 8)]
    assert once == ["", "", ""]  # a single slow step is no slow rank


def test_out_of_memory_is_told_with_what_to_change(tmp_path):
    config = config_of(tmp_path, "train.micro_batch=4", "optim.distributed=false")
    for error in (
        MemoryError(),
        RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ):
        told = explain(error, config)
        assert "rank 0 on " in told and "out of memory" in told
        assert "train.micro_batch=2" in told and "parallel.recompute=selective" in told
        assert "optim.distributed=true" in told and "parallel.tensor=2" in told
        assert "parallel.context=2 (more ranks share each row)" in told
    odd = config_of(tmp_path, "data.sequence_length=129")
    assert "parallel.context" not in explain(MemoryError(), odd)
    assert "lost another rank" in explain(RuntimeError("Connection closed by peer [x]"), config)
    assert explain(RuntimeError("shapes do not match"), config) == ""
    full = OSError(28, "No space left on device", "runs/a/data.json")
    full.add_note("step 4 is saved in runs/a")
    told = explain(full, config)
    assert told.endswith(": runs/a/data.json: No space left on device\nstep 4 is saved in runs/a")


LISTENING = """
import signal, sys, time
from megatron_qwen3.config import load
from megatron_qwen3.training import stop
stop.AT_ONCE_SECONDS = 0.5
for name in ("SIGUSR1", "SIGTERM", "SIGINT", "SIGHUP"):
    signal.signal(signal.Signals[name], signal.SIG_IGN if name in sys.argv else signal.SIG_DFL)
request = stop.StopRequest(load([], ["model.preset=tiny-dense", "train.steps=1"]))
print("listens", flush=True)
while True:
    time.sleep(0.01)
    if reason := request.reason(0.0):
        print(stop.told(reason), flush=True)
        time.sleep(60)
"""


def listening(*ignored):
    command = [sys.executable, "-c", LISTENING, *ignored]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout.readline() == "listens\n"
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_again_after_a_while_ends_the_process_at_once_and_a_doubled_one_does_not(name):
    number = signal.Signals[name]
    with listening() as process:
        process.send_signal(signal.SIGUSR1)  # a plan to stop later is no first of two
        assert process.stdout.readline() == "SIGUSR1\n"
        time.sleep(0.6)
        process.send_signal(number)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        time.sleep(0.3)
        process.send_signal(number)
        assert process.wait(5) == 128 + number
        assert process.stderr.read() == f"stopped at once: {name} again; nothing was saved\n"


def test_what_was_ignored_at_the_start_stays_ignored():
    with listening("SIGHUP") as process:
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "SIGINT\n"
        process.kill()


def test_a_stop_under_torchrun_says_how_long_there_is_to_save(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    request = StopRequest(config_of(tmp_path))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    request._hear(signal.SIGINT, None)
    assert stop.told(request.reason(0)) == "SIGINT (torchrun kills the ranks 30 s after it)"


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_end_of_the_job_is_none(tmp_path, monkeypatch, value):
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    monkeypatch.setenv("SLURM_JOB_END_TIME", value)
    stop.check(config_of(tmp_path))
    assert StopRequest(config_of(tmp_path)).reason(1e9) == 0


def test_an_end_of_the_job_that_leaves_no_time_is_told_before_any_rank_starts(
    tmp_path, monkeypatch
):
    config = config_of(tmp_path)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "soon")
    with pytest.raises(ConfigError, match="SLURM_JOB_END_TIME = soon is not a time in seconds"):
        stop.check(config)
    monkeypatch.setenv("SLURM_JOB_START_TIME", "1000")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1120")
    with pytest.raises(ConfigError, match=r"stop_early_seconds = 120, but SLURM ends .* 120 s"):
        stop.check(config)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1121")
    stop.check(config)
