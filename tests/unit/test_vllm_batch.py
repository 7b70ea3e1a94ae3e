"""The answers of a batch: budgets, seeds, servers that die while they write, versions."""

import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
from endpoint import serving

from megatron_qwen3.config import load
from megatron_qwen3.generate.thinking import ThinkingBudget
from megatron_qwen3.posttrain.rollouts import vllm_fleet
from megatron_qwen3.posttrain.rollouts.packed import packed, unpacked
from megatron_qwen3.posttrain.rollouts.rollout import Ask
from megatron_qwen3.posttrain.rollouts.vllm_batch import DONE, TRIES, WAITING, AskBatch, seed_of
from megatron_qwen3.posttrain.rollouts.vllm_fleet import Fleet
from megatron_qwen3.posttrain.rollouts.vllm_server import ServerFailed
from megatron_qwen3.settings_rollouts import RolloutsConfig, VllmConfig

END, OPENS, CLOSES, CUT = 1, 2, 3, (90, 91, 3)
VERSION = 5


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(vllm_fleet, "REST_SECONDS", 0.3)


def config_of(urls, **vllm):
    config = load([], ["model.preset=tiny-dense", "train.steps=1", "data.sequence_length=64"])
    served = VllmConfig(urls=tuple(urls), **vllm)
    return replace(config, rollouts=RolloutsConfig(engine="vllm", temperature=0.5, vllm=served))


def budget_of(tokens):
    return ThinkingBudget(tokens, OPENS, CLOSES, CUT)


class Scripted:
    """A server whose sample of seed s after `row` is `say(row, s)`, one token after the other.

    `lost`: it answers nothing, and is not well.
    """

    def __init__(self, say):
        self.say, self.lost, self.version, self.questions = say, False, VERSION, []
        self.lock = threading.Lock()

    def __call__(self, body, number):
        if self.lost:
            return 500
        if body is None:
            return {}
        params = body["sampling_params"]
        with self.lock:
            self.questions.append((body["token_ids"], params))
        choices = [self.choice(body["token_ids"], params, k) for k in range(params["n"])]
        return {"choices": choices}

    def choice(self, prompt, params, k):
        tokens = []
        while len(tokens) < params["max_tokens"]:
            tokens.append(self.say([*prompt, *tokens], params["seed"] + k))
            if tokens[-1] in params["stop_token_ids"]:
                break
        stopped = tokens[-1] in params["stop_token_ids"]
        return {
            "index": k,
            "token_ids": tokens,
            "finish_reason": "stop" if stopped else "length",
            "logprobs": {"content": [{"token_id": t, "logprob": -t / 100} for t in tokens]},
            "weight_versions": [{"version": str(self.version), "start": 0, "end": len(tokens)}],
        }


def fleet_of(config):
    told = []
    fleet = Fleet(config, True, None, told.append)
    fleet.start()
    assert fleet.are_up(10)
    for member in fleet.members:
        member.version = VERSION
    return fleet, told


def answered(asks, *servers, **vllm):
    """The rollouts of asks by scripted servers."""
    with_addresses = [serving(server) for server in servers]
    addresses = [context.__enter__()[0].removesuffix("/v1") for context in with_addresses]
    config = config_of(addresses, **vllm)
    fleet, told = fleet_of(config)
    try:
        batch = AskBatch(asks, config, (END,), budget_of)
        while (state := batch.work(fleet, VERSION)) != DONE:
            assert state == WAITING
            for member in fleet.waiting(VERSION):
                member.version = VERSION
        return batch.rollouts(), told
    finally:
        fleet.close()
        for context in with_addresses:
            context.__exit__(None, None, None)


def ask(prompt, samples=1, limit=12, budget=0, seed=0):
    return Ask("t", tuple(prompt), seed, samples, limit, bool(budget), budget)


def counts(row, seed):
    """The next number, up to 60, whatever the seed."""
    return min(row[-1] + 1, 60)


def test_an_answer_ends_at_its_end_token_or_its_limit():
    server = Scripted(lambda row, seed: END if row[-1] == 13 else row[-1] + 1)
    ((done,), (full,)), _ = answered([ask([10]), ask([20], limit=4)], server)
    assert (done.tokens, done.finish) == ((11, 12, 13, END), "stop")
    assert (full.tokens, full.finish) == ((21, 22, 23, 24), "length") and full.is_truncated
    assert done.log_probs == (-0.11, -0.12, -0.13, -0.01) and all(done.sampled)
    assert done.versions == (VERSION, VERSION)


def thinker(row, seed):
    """Opens a think block after 10, and thinks until it is cut; answers with 50, 51, the end."""
    after = {10: OPENS, CLOSES: 50, 50: 51, 51: END}
    return after.get(row[-1], 40)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_budget_forces_the_end_of_thinking_and_marks_what_it_forced(samples):
    server = Scripted(thinker)
    (made,), _ = answered([ask([10], samples, limit=20, budget=4)], server)
    for rollout in made:
        assert rollout.tokens == (OPENS, 40, 40, 40, 40, *CUT, 50, 51, END)
        assert rollout.sampled == (True,) * 5 + (False,) * 3 + (True,) * 3
        assert rollout.log_probs[5:8] == (0.0, 0.0, 0.0) and rollout.finish == "stop"
    budgets = [params["max_tokens"] for _, params in server.questions]
    assert Counter(budgets) == {20: 1, 4: samples, 12: samples}
    stops = [params["stop_token_ids"] for _, params in server.questions]
    assert stops[0] == [END, OPENS] and all(ids == [END] for ids in stops[1:])


def test_thinking_that_ends_by_itself_is_not_cut_and_no_second_block_has_a_budget():
    script = {10: OPENS, OPENS: 40, 40: CLOSES, CLOSES: 50, 50: OPENS + 60, 62: 52, 52: END}
    server = Scripted(lambda row, seed: script[row[-1]])
    (((rollout,),), _) = answered([ask([10], limit=20, budget=4)], server)
    assert rollout.tokens == (OPENS, 40, CLOSES, 50, 62, 52, END) and all(rollout.sampled)


def test_a_prompt_within_thinking_counts_what_it_has_and_a_budget_of_none_forces_at_once():
    server = Scripted(thinker)
    ((inside,),), _ = answered([ask([10, OPENS, 40, 40], limit=20, budget=3)], server)
    assert inside.tokens == (40, *CUT, 50, 51, END) and inside.sampled[:4] == (True,) + (False,) * 3
    ((cut,),), _ = answered([ask([10, OPENS, 40, 40, 40], limit=20, budget=3)], Scripted(thinker))
    assert cut.tokens == (*CUT, 50, 51, END) and cut.sampled[:3] == (False,) * 3


def test_a_limit_within_what_is_forced_ends_the_answer_there():
    ((rollout,),), _ = answered([ask([10], limit=7, budget=4)], Scripted(thinker))
    assert rollout.tokens == (OPENS, 40, 40, 40, 40, *CUT[:2]) and rollout.finish == "length"


def test_prompt_and_answer_together_fit_a_row_and_the_servers_own_limit_is_an_end_too():
    ((rollout,), (none,)), _ = answered([ask([5] * 60), ask([5] * 64)], Scripted(counts))
    assert len(rollout.tokens) == 4 and rollout.finish == "length"
    assert none.tokens == () and none.finish == "length"

    class Short(Scripted):
        def choice(self, prompt, params, k):
            return super().choice(prompt, params | {"max_tokens": 3}, k)

    ((rollout,),), _ = answered([ask([5])], Short(counts))
    assert rollout.tokens == (6, 7, 8) and rollout.finish == "length"


def test_samples_draw_from_seeds_of_their_own_whatever_stands_beside_them():
    server = Scripted(lambda row, seed: 10 + (seed + 7 * len(row)) % 50)
    asks = [ask([4], 3, 5, seed=n) for n in range(4)]
    made, _ = answered(asks, server)
    alone, _ = answered(asks[2:3], server)
    assert made[2] == alone[0]
    seeds = {params["seed"] + k for _, params in server.questions[:4] for k in range(3)}
    assert len(seeds) == 12
    parts = {seed_of(3, k, part) for k in range(8) for part in range(4)}
    assert len(parts) == 32 and all(0 <= seed < 1 << 62 for seed in parts)
    assert seed_of(3, 1, 0) == seed_of(3, 0, 0) + 1


def test_requests_are_spread_over_servers_and_no_more_are_under_way_than_said():
    most, now, lock = [0], [0], threading.Lock()

    def slow(row, seed):
        if len(row) == 1:
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.02)
            with lock:
                now[0] -= 1
        return END

    servers = [Scripted(slow), Scripted(slow)]
    answered([ask([n]) for n in range(10, 30)], *servers, concurrency=2)
    assert most[0] <= 4 and all(len(server.questions) >= 5 for server in servers)


def test_what_a_dying_server_left_is_asked_again_and_it_comes_back_with_its_weights():
    class Mortal(Scripted):
        def __call__(self, body, number):
            if body is not None and len(self.questions) == 5:
                self.lost = True
                threading.Timer(1.0, self.revive).start()
            return super().__call__(body, number)

        def revive(self):
            self.lost = False
            self.questions.append("revived")

    mortal = Mortal(lambda row, seed: 10 + (seed + 7 * len(row)) % 50)
    asks = [ask([4], 2, 5, seed=n) for n in range(20)]
    made, told = answered(asks, mortal, concurrency=4)
    expected, _ = answered(asks, Scripted(mortal.say))
    assert made == expected and len(told) == 1 and "is started again" in told[0]


def test_a_server_that_dies_too_often_ends_the_batch_with_its_name():
    class Ill(Scripted):
        def __call__(self, body, number):
            return {} if body is None else 500

    ((rollout, _),), _ = answered([ask([4], 2)], Ill(counts))
    assert rollout.finish == "error" and f"({TRIES} tries)" in rollout.error

    class Liar(Scripted):
        version = "default"

    liar = Liar(counts)
    liar.version = "default"
    with pytest.raises(ServerFailed, match="failed 3 times in one batch, and .*restarts = 2"):
        answered([ask([4])], liar, restarts=2)


def test_what_a_server_refuses_is_an_error_of_that_ask_alone():
    class Picky(Scripted):
        def __call__(self, body, number):
            if body is not None and body["token_ids"] == [7]:
                return 400
            return super().__call__(body, number)

    ((bad, _), (good,), (no_id,)), _ = answered(
        [ask([7], 2), ask([8], limit=2), ask([10_000])], Picky(counts)
    )
    assert bad.finish == "error" and "400" in bad.error and bad.tokens == ()
    assert no_id.finish == "error" and "is no id" in no_id.error
    assert good.tokens == (9, 10) and good.finish == "length"


def test_rollouts_reach_other_ranks_as_they_are():
    asks = [ask([10], 3, limit=20, budget=4), ask([60_000]), ask([5] * 64, 2)]
    made, _ = answered(asks, Scripted(thinker))
    assert unpacked(asks, packed(made)) == made
    assert unpacked([], packed([])) == []
