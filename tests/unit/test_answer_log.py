"""Answers outlive any end of the run; failed requests are sent again."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scripted import Scripted, Silent

from megatron_qwen3.posttrain.building.answer_log import AnswerLog, key_of
from megatron_qwen3.posttrain.building.asking import MOST_FAILURES, Dead, answers_to, ask
from megatron_qwen3.posttrain.generators.answers import Answer, Request

ROOT = Path(__file__).parents[2]


def request(text, **more):
    return Request([{"role": "user", "content": text}], **more)


def test_answers_are_there_again_when_the_log_is_opened_again(tmp_path):
    answers = [Answer("a\nb\x1b[31m\u2028é", "stop"), Answer("", "length")]
    with AnswerLog(tmp_path / "log") as log:
        log.add("k", answers[:1])
        log.add("other", [Answer("x", "stop")])
        log.add("k", [answers[1], Answer("", "error", None, "why")])
        log.add("k", [Answer("", "error", None, "why")])
        assert log.answers("k") == answers
    with AnswerLog(tmp_path / "log") as log:
        assert log.answers("k") == answers and log.count("k") == 2 and log.count("none") == 0
        assert log.answers("none") == [] and log.damaged == 0


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_a_kill_cut_short_is_taken_away_and_the_rest_stays(tmp_path, cut):
    path = tmp_path / "log"
    with AnswerLog(path) as log:
        log.add("first", [Answer("a", "stop")])
        log.add("last", [Answer("b" * 20, "stop")])
    path.write_bytes(path.read_bytes()[:-cut])
    with AnswerLog(path) as log:
        assert (log.count("first"), log.count("last")) == (1, 0)
        log.add("last", [Answer("c", "stop")])
    with AnswerLog(path) as log:
        assert log.answers("last") == [Answer("c", "stop")] and log.damaged == 0


@pytest.mark.parametrize(
    "line",
    [
        b"{}", b"null", b"[1]", b"\xff\xfe", b'{"key": "k", "answers": null}', b"[" * 99_999,
        b'{"key": "k", "answers": [["a", "error"]]}', b'{"key": "k", "answers": [[1, "stop"]]}',
    ],
)  # fmt: skip
def test_a_damaged_line_is_counted_and_what_stands_around_it_is_read(tmp_path, line):
    path = tmp_path / "log"
    with AnswerLog(path) as log:
        log.add("k", [Answer("a", "stop")])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with AnswerLog(path) as log:
        log.add("k", [Answer("b", "stop")])
        assert [a.text for a in log.answers("k")] == ["a", "b"] and log.damaged == 1


def test_a_full_disk_is_an_error_and_leaves_no_half_a_line(tmp_path):
    program = """
import resource, sys
from pathlib import Path
from megatron_qwen3.posttrain.building.answer_log import AnswerLog
from megatron_qwen3.posttrain.generators.answers import Answer
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with AnswerLog(Path(sys.argv[1])) as log:
    log.add("a", [Answer("a" * 100, "stop")])
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
    try:
        log.add("b", [Answer("b" * 500, "stop")])
    except OSError:
        print("full", log.count("b"))
"""
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "full 0\n", done.stderr
    with AnswerLog(tmp_path / "log") as log:
        assert log.count("a") == 1 and log.count("b") == 0 and log.damaged == 0


def test_a_key_is_of_the_model_and_the_request_whatever_number_of_samples():
    base = request("q", seed=1)
    assert key_of("m", base) == key_of("m", request("q", seed=1, samples=5))
    others = [request("q", seed=2), request("r", seed=1), request("q", seed=1, max_tokens=5)]
    others += [request("q", seed=1, enable_thinking=False), request("q", seed=1, top_p=0.5)]
    keys = {key_of("m", other) for other in [base, *others]} | {key_of("n", base)}
    assert len(keys) == 7


def test_only_what_is_missing_is_asked_for_and_drawn_otherwise(tmp_path):
    generator = Scripted(lambda request, k: f"{request.seed}.{k}")
    with AnswerLog(tmp_path / "log") as log:
        ask(generator, log, [request("q", samples=2)], Silent(), "t")
        ask(generator, log, [request("q", samples=5), request("r")], Silent(), "t")
        assert [r.samples for r in generator.asked] == [2, 3, 1]
        found = [a.text for a in answers_to(generator, log, request("q", samples=5))]
        assert found == ["0.0", "0.1", "2.0", "2.1", "2.2"]
        ask(generator, log, [request("q", samples=4), request("r")], Silent(), "t")
        assert len(generator.asked) == 3
        assert len(answers_to(generator, log, request("q", samples=4))) == 4


def fails_at(*texts):
    def say(request, sample):
        if request.messages[0]["content"] in texts:
            raise ValueError("no luck")
        return "a"

    return say


def test_a_request_that_fails_is_told_and_asked_again_the_next_time(tmp_path):
    requests = [request(text, samples=2) for text in "abc"]
    generator = Scripted(fails_at("b"))
    with AnswerLog(tmp_path / "log") as log:
        assert ask(generator, log, requests, Silent(), "t") == {1: "no luck"}
        assert [len(answers_to(generator, log, r)) for r in requests] == [2, 0, 2]
        generator = Scripted(fails_at())
        assert ask(generator, log, requests, Silent(), "t") == {}
        assert [r.messages[0]["content"] for r in generator.asked] == ["b"]


def test_a_dead_endpoint_ends_the_run_and_loses_nothing(tmp_path):
    requests = [request(str(k)) for k in range(200)]
    dead = Scripted(fails_at(*map(str, range(70, 200))))
    with AnswerLog(tmp_path / "log") as log, pytest.raises(Dead) as error:
        ask(dead, log, requests, Silent(), "t")
    assert "no luck" in str(error.value) and "the same command goes on" in str(error.value)
    assert len(dead.asked) == 70 + MOST_FAILURES
    alive = Scripted(fails_at())
    with AnswerLog(tmp_path / "log") as log:
        assert not ask(alive, log, requests, Silent(), "t")
        assert len(alive.asked) == 130


def test_failures_with_answers_between_them_are_no_dead_endpoint(tmp_path):
    requests = [request(str(k)) for k in range(4 * MOST_FAILURES)]
    generator = Scripted(fails_at(*(str(k) for k in range(4 * MOST_FAILURES) if k % 3)))
    with AnswerLog(tmp_path / "log") as log:
        assert len(ask(generator, log, requests, Silent(), "t")) > 2 * MOST_FAILURES


def test_what_people_should_know_is_told_once(tmp_path):
    generator, steps = Scripted(lambda request, k: "a"), Silent()
    generator.notes.append("no \x1b[31mtop_k")
    with AnswerLog(tmp_path / "log") as log:
        ask(generator, log, [request("q")], steps, "t")
        ask(generator, log, [request("r")], steps, "t")
    assert steps.said == ["note: no \x1b[31mtop_k"]  # Steps escapes what it prints


def test_a_run_that_is_killed_at_any_moment_has_all_answers_that_it_was_told_of(tmp_path):
    program = """
import sys
from pathlib import Path
from megatron_qwen3.posttrain.building.answer_log import AnswerLog
from megatron_qwen3.posttrain.generators.answers import Answer
with AnswerLog(Path(sys.argv[1])) as log:
    for k in range(100_000):
        log.add(str(k), [Answer(f"{k}" * (k % 97), "stop")])
        print(k, flush=True)
"""
    lots = random.Random(0)
    for turn in range(3):
        path = tmp_path / f"log{turn}"
        command = [sys.executable, "-c", program, str(path)]
        run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        told = [run.stdout.readline() for _ in range(lots.randint(1, 60))]
        os.kill(run.pid, signal.SIGKILL)
        told += run.stdout.readlines()
        run.wait()
        with AnswerLog(path) as log:
            for k in map(int, (line for line in told if line.endswith("\n"))):
                assert log.answers(str(k)) == [Answer(f"{k}" * (k % 97), "stop")]
            assert log.damaged == 0
        assert all(json.loads(line) for line in path.read_bytes().splitlines())
