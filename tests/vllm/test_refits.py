"""Servers compute as the model in training, after each of three refits, from any layout."""

import dataclasses
import itertools
import os
import urllib.request
from pathlib import Path

import pytest
from ranks import run_ranks
from serving import SECONDS, engine_of, greedy, models, theirs

from megatron_qwen3.convert.load import fill
from megatron_qwen3.posttrain.rollouts.rollout import Ask
from megatron_qwen3.posttrain.rollouts.vllm_client import Client, Died, TokenDraw

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(SECONDS)]
TOKENS = 16
CASES = {
    "tied, folder": ("tied", (), "folder"),
    "dense tp2, gloo": ("dense", ("parallel.tensor=2",), "gloo"),
    "moe ep2, gloo": ("moe", ("parallel.expert=2",), "gloo"),
}
LONG = tuple((7 * n) % 300 for n in range(100))  # more than a block of the cache


def asks():
    return [
        Ask("long", LONG, seed=3, samples=2, max_new_tokens=TOKENS, thinking=False),
        Ask("long again", LONG, seed=4, samples=1, max_new_tokens=TOKENS, thinking=False),
        Ask("short", (5, 6, 7), seed=3, samples=3, max_new_tokens=TOKENS, thinking=False),
    ]


def refitted(folders, python, home, settings, way):
    """Of each folder's weights: rollouts, greedy answers, and the refit's time."""
    found = []
    vllm = {"refit": way, "bucket_bytes": 20_000}
    with engine_of(folders[0], python, home, settings, 0.7, **vllm) as (engine, model):
        for number, folder in enumerate(folders):
            fill(model, Path(folder), verify="")
            engine.refit(version=number + 1)
            made = engine.sample(asks())
            assert_same(made, engine.sample(asks()[::-1])[::-1])
            answers = None
            if os.environ["RANK"] == "0":
                client = Client(engine.urls[0], 320, 60)
                draw = TokenDraw(0.0, 0, 1, TOKENS, ())
                answers = [client.generate(p, draw)[0].tokens for p in (LONG, (5, 6, 7))]
                refuse_others(client)
            found.append((made, answers, dataclasses.asdict(engine.refits)))
    return found


def assert_same(groups, others):
    """Up to the rounding of a prompt that is read in other pieces."""
    for a, b in zip(itertools.chain(*groups), itertools.chain(*others), strict=True):
        assert a.tokens == b.tokens and a.log_probs == pytest.approx(b.log_probs, abs=1e-5)


def refuse_others(client):
    """A server that is offered other names or shapes says so and goes on."""
    name = "model.norm.weight"
    with pytest.raises(Died, match="lm_head.weight is missing|embed_tokens.weight is missing"):
        client.check([[name, [32], "float32"]])
    with pytest.raises(Died, match=r"has shape \[31\], this model \[32\]"):
        client.check([[name, [31], "float32"]])
    with pytest.raises(Died, match="is no tensor of this model"):
        client.check([["model.bias", [32], "float32"]])
    assert urllib.request.urlopen(f"{client.url}/health").status == 200


@pytest.mark.parametrize("case", CASES)
def test_after_each_refit_a_server_is_the_model_in_training(python, tmp_path, case):
    kind, settings, way = CASES[case]
    folders = models(tmp_path, kind, 3)
    ranks = 2 if settings else 1
    arguments = (folders, python, tmp_path, settings, way)
    results = run_ranks(refitted, ranks, *arguments, timeout_seconds=SECONDS)
    for other in results[1:]:
        assert [made for made, *_ in other] == [made for made, *_ in results[0]]
    for number, (made, answers, refits) in enumerate(results[0]):
        rollouts = [rollout for group in made for rollout in group]
        check_rollouts(folders[number], rollouts, number + 1)
        assert answers == [greedy(folders[number], p, TOKENS) for p in (LONG, (5, 6, 7))]
        assert refits["difference"] < 1e-4 and not refits["restarts"]
        assert refits["tensors"] > 20 and refits["bytes"] > 100_000 and refits["seconds"] > 0
        assert len({rollout.tokens for rollout in rollouts[:3]}) == 3, "samples are copies"
    assert len({str(made) for made, *_ in results[0]}) == 3
    assert len({refits["checksum"] for *_, refits in results[0]}) == 3, "the same weights"
    assert not list(Path("/dev/shm").glob(f"mq3-served-*{tmp_path.name}*"))


def check_rollouts(folder, rollouts, version):
    scored = theirs(folder, [[*r.prompt, *r.tokens] for r in rollouts], 0.7)
    for rollout, log_probs in zip(rollouts, scored, strict=True):
        assert rollout.log_probs == pytest.approx(log_probs[len(rollout.prompt) - 1 :], abs=1e-4)
        assert rollout.versions == (version, version) and all(rollout.sampled)
        full = len(rollout.tokens) == TOKENS
        assert rollout.finish == "length" if full else rollout.finish == "stop"
