"""Answers are judged in processes that a limit ends; unjudged ones are counted, never 0."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.verifiers import Verdict, Verifiers
from megatron_qwen3.processes import isolated

SEVEN = {"kind": "numeric", "gold": 7}
# A regular expression that takes 2**60 steps, in C code.
HANGS = ({"kind": "json", "schema": {"pattern": "^(a+)+$"}}, f'"{"a" * 60}!"')


def our_workers():
    found = []
    for child in psutil.Process().children():
        with_arguments = " ".join(child.cmdline())
        found += [child] if "verifiers.worker" in with_arguments else []
    return found


def test_verdicts_come_in_the_order_of_the_answers():
    pairs = [(SEVEN, str(n % 8)) for n in range(200)]
    with Verifiers(workers=2) as verifiers:
        verdicts = verifiers.judge(pairs)
    assert [v.score for v in verdicts] == [float(n % 8 == 7) for n in range(200)]
    assert (verifiers.judged, verifiers.errors, verifiers.time_outs) == (200, 0, 0)
    assert not verifiers.alarm() and not our_workers()


def test_an_answer_that_hangs_is_a_time_out_and_the_others_are_judged():
    with Verifiers(workers=1, seconds=0.5) as verifiers:
        began = time.monotonic()
        hung, right = verifiers.judge([HANGS, (SEVEN, "7")])
        assert time.monotonic() - began < 60
    assert hung.score is None and hung.reason == "time-out: no verdict after 0.5 s"
    assert right == Verdict(1.0, "")
    assert (verifiers.judged, verifiers.errors, verifiers.time_outs) == (2, 0, 1)
    assert verifiers.alarm() == (
        "1 of 2 answers could not be judged: 0 errors, 1 time-outs after 0.5 s"
    )


def test_errors_are_counted_and_more_than_one_in_a_hundred_is_an_alarm():
    unknown = ({"kind": "xyz"}, "7")
    with Verifiers(workers=1) as verifiers:
        verdicts = verifiers.judge([unknown, *[(SEVEN, "6")] * 99])
        assert verdicts[0].score is None and "is no kind of verifier" in verdicts[0].reason
        assert {v.score for v in verdicts[1:]} == {0.0}
        assert not verifiers.alarm()
        verifiers.judge([unknown])
    assert verifiers.alarm().startswith("2 of 101 answers could not be judged: 2 errors")


def test_any_number_of_threads_may_judge_at_once():
    found = {}
    with Verifiers(workers=2) as verifiers:

        def judge(n):
            found[n] = [v.score for v in verifiers.judge([(SEVEN, str(n))] * 5)]

        threads = [threading.Thread(target=judge, args=(n,)) for n in range(5, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == {n: [float(n == 7)] * 5 for n in range(5, 9)}


def test_a_worker_that_dies_is_an_error_of_one_answer():
    with Verifiers(workers=1) as verifiers:
        verifiers.judge([(SEVEN, "7")])
        (worker,) = our_workers()
        os.kill(worker.pid, signal.SIGKILL)
        verdicts = verifiers.judge([(SEVEN, "7")] * 2)
    assert [v.score for v in verdicts] == [None, 1.0]
    assert verdicts[0].reason.startswith("error: the worker ended with status -9")


@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="no such limits here")
def test_a_worker_may_have_4_gib_of_memory():
    with Verifiers(workers=1) as verifiers:
        verifiers.judge([(SEVEN, "7")])
        (worker,) = our_workers()
        assert worker.rlimit(psutil.RLIMIT_DATA)[0] == 4 << 30
    program = """
import resource
from megatron_qwen3.posttrain.verifiers.worker import _set_limit
_set_limit(resource.RLIMIT_DATA, 1 << 30)
bytearray(1 << 31)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=isolated(), capture_output=True, text=True)
    assert done.stderr.endswith("MemoryError\n")


def test_leaving_kills_a_worker_that_hangs():
    hung = []
    with Verifiers(workers=1, seconds=500) as verifiers:
        verifiers.judge([(SEVEN, "7")])
        thread = threading.Thread(target=lambda: hung.extend(verifiers.judge([HANGS])))
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive()
    thread.join(30)
    assert hung[0].score is None and not our_workers()


@pytest.mark.parametrize("hangs", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_workers_end_with_a_parent_that_is_killed(hangs):
    program = f"""
from megatron_qwen3.posttrain.verifiers import Verifiers
with Verifiers(workers=1, seconds=1 if {hangs} else 60) as verifiers:
    verifiers.judge([({SEVEN}, "7")])
    verifiers.seconds = verifiers._all[0].seconds = 60
    print("ready", flush=True)
    verifiers.judge([{HANGS}] if {hangs} else [])
    input()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    parent = subprocess.Popen([sys.executable, "-c", program], env=isolated(), **pipes)
    assert parent.stdout.readline() == b"ready\n"
    time.sleep(0.3)
    (worker,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.communicate()
    assert psutil.wait_procs([worker], timeout=60)[0]


def test_settings_of_no_use_are_refused():
    for settings in ({"workers": 0}, {"seconds": 0.0}):
        with pytest.raises(ConfigError, match="workers = .*, seconds = .*; valid"):
            Verifiers(**settings)
