"""Faults: a server is killed in the middle of a batch, or computes with old weights or caches."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from ranks import run_ranks
from serving import SECONDS, engine_of, models

from megatron_qwen3.config import ConfigError
from megatron_qwen3.convert.load import fill
from megatron_qwen3.generate.thinking import CUT_TEXT
from megatron_qwen3.posttrain.rollouts import canary
from megatron_qwen3.posttrain.rollouts.rollout import Ask
from megatron_qwen3.posttrain.rollouts.vllm_client import Client, TokenDraw

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(SECONDS)]
AT_ANSWER = 6  # of a server, which has others under way


def asks(count, tokens, samples=2):
    return [
        Ask(
            f"task {n}",
            (5, 6, 7 + n),
            seed=n,
            samples=samples,
            max_new_tokens=tokens,
            thinking=False,
        )
        for n in range(count)
    ]


def server_processes():
    """Of this rank: each server's leash, and all that it started."""
    leashes = psutil.Process().children()
    return [(leash, leash.children(recursive=True)) for leash in leashes]


def disturbed(folder, python, home):
    """The rollouts of a batch in which one of two servers was killed, and of one without that."""
    with engine_of(folder, python, home, servers=2, concurrency=4) as (engine, _):
        engine.refit(version=1)
        expected = engine.sample(asks(30, 60))
        (leash, family), _ = servers = server_processes()
        assert len(family) >= 2 and len(servers) == 2
        api = min(family, key=lambda process: process.create_time())
        generate, answers = Client.generate, []

        def killing(self, *args):
            drawn = generate(self, *args)
            if self.url == first.url:
                answers.append(None)
                if len(answers) == AT_ANSWER:
                    os.kill(api.pid, signal.SIGKILL)
            return drawn

        fleet = engine._fleet
        first, Client.generate = fleet.members[0].client, killing
        made = engine.sample(asks(30, 60))
        Client.generate = generate
        until(lambda: fleet.look() or fleet.restarted)
        until(lambda: not any(alive(process) for process in (leash, *family)))
        until(lambda: fleet.look() or all(member.is_up for member in fleet.members))
        engine.refit(version=1)  # of the one that came back
        restarts = engine.refits.restarts
        last = [
            Client(url, 320, 60).generate((5, 6, 7), TokenDraw(1.0, 1, 1, 8, ()))
            for url in engine.urls
        ]
    processes = [process for _, family in servers for process in family]
    until(lambda: not any(alive(process) for process in processes))
    return expected, made, restarts, last


def until(condition):
    while not condition():
        time.sleep(0.1)


def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_batch_loses_nothing_when_a_server_is_killed_and_no_process_is_left(python, tmp_path):
    (folder,) = models(tmp_path, "dense")
    arguments = (folder, python, tmp_path)
    (result,) = run_ranks(disturbed, 1, *arguments, timeout_seconds=SECONDS)
    expected, made, restarts, last = result
    assert [[r.tokens for r in group] for group in made] == [
        [r.tokens for r in group] for group in expected
    ]
    assert not any(rollout.error for group in made for rollout in group)
    assert restarts == 1
    (one,), (other,) = last
    assert one.versions == other.versions == ["1"] and one.tokens == other.tokens
    assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)


def thinking(budget, prompt):
    return Ask("think", prompt, 1, 3, 130, True, budget)


def watched(folders, python, home):
    """Budgets kept; and the result of a refit's check for an old cache and for old weights."""
    found = {}
    with engine_of(folders[0], python, home) as (engine, model):
        engine.refit(version=1)
        opens, closes = (engine._budget_of(1).opens, engine._budget_of(1).closes)
        found["cut"] = engine._budget_of(6).cut
        found["groups"] = engine.sample([thinking(6, (5, 6, opens)), thinking(4, (5, opens, 8))])
        found["closes"] = closes
        client = Client(engine.urls[0], 320, 60)
        canary.ask(client, engine._prompts, 1.0, 1)
        fill(model, Path(folders[1]), verify="")
        found["old weights"] = canary.differences(
            model, engine._prompts, [canary.ask(client, engine._prompts, 1.0)], 1.0
        )
        forget, pause = Client.forget_prompts, Client.pause
        Client.forget_prompts = lambda self: None
        Client.pause = lambda self: self._ask("/pause?mode=wait&clear_cache=false", {}, dict)
        with pytest.raises(ConfigError, match="does not compute as the model in training does"):
            engine.refit(version=2)
        Client.forget_prompts, Client.pause = forget, pause
        engine.refit(version=3)
        found["difference"] = engine.refits.difference
    return found


def test_budgets_are_kept_and_an_old_cache_or_old_weights_stop_the_run(python, tmp_path):
    arguments = (models(tmp_path, "dense", 2), python, tmp_path)
    (found,) = run_ranks(watched, 1, *arguments, timeout_seconds=SECONDS)
    cut, budgets = found["cut"], (6, 3)  # the second prompt has a token of thinking already
    for group, budget in zip(found["groups"], budgets, strict=True):
        for rollout in group:
            free = (
                rollout.tokens.index(found["closes"]) if found["closes"] in rollout.tokens else 99
            )
            forced = [n for n, sampled in enumerate(rollout.sampled) if not sampled]
            if free < budget or rollout.tokens[-1] in (0, 1, 2) and len(rollout.tokens) <= budget:
                assert not forced, "thinking that ended by itself was cut"
                continue
            assert forced == list(range(budget, budget + len(cut))), CUT_TEXT
            assert rollout.tokens[budget : budget + len(cut)] == tuple(cut)
            assert {rollout.log_probs[n] for n in forced} == {0.0}
            assert all(x < 0 for n, x in enumerate(rollout.log_probs) if n not in forced)
    assert found["old weights"][0] > 1e-2 and found["difference"] < 1e-4
