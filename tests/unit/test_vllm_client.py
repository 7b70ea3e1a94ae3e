"""Ids in, ids out: requests to a server of vLLM, and checks of its reply."""

import json

import pytest
from endpoint import serving

from megatron_qwen3.posttrain.generators.replies import RequestRefused
from megatron_qwen3.posttrain.rollouts.vllm_client import Client, Died, TokenDraw
from megatron_qwen3.posttrain.rollouts.vllm_server import is_healthy

DRAW = TokenDraw(0.7, seed=11, samples=2, max_tokens=3, stops=(9, 8))


def choice(index, tokens, log_probs, finish="length", **more):
    content = [{"token_id": t, "logprob": x} for t, x in zip(tokens, log_probs, strict=True)]
    span = {"version": "4", "start": 0, "end": len(tokens)}
    usual = {"index": index, "token_ids": tokens, "finish_reason": finish}
    return usual | {"logprobs": {"content": content}, "weight_versions": [span]} | more


def client_of(address, seconds=10):
    return Client(address.removesuffix("/v1"), 10, seconds)


def generated(*choices):
    with serving(lambda body, number: {"choices": list(choices)}) as (address, asked):
        return client_of(address).generate([1, 2], DRAW), asked


def test_every_setting_of_sampling_is_sent_and_samples_come_in_order():
    made, [(path, _, body)] = generated(
        choice(1, [3], [-0.5], "stop"), choice(0, [4, 5, 6], [-1.0, -2.0, 0.0])
    )
    assert path == "/inference/v1/generate" and body["token_ids"] == [1, 2]
    assert body["sampling_params"] == {
        "temperature": 0.7,
        "seed": 11,
        "n": 2,
        "max_tokens": 3,
        "min_tokens": 0,
        "stop_token_ids": [9, 8],
        "ignore_eos": True,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logprobs": 0,
        "detokenize": False,
    }
    assert [(x.tokens, x.log_probs, x.finish) for x in made] == [
        ([4, 5, 6], [-1.0, -2.0, 0.0], "length"),
        ([3], [-0.5], "stop"),
    ]
    assert made[0].versions == ["4"]


GOOD = choice(0, [4], [-1.0])
BAD = {
    "too few": [GOOD],
    "not in the vocabulary": [GOOD, choice(1, [10], [-1.0])],
    "negative": [GOOD, choice(1, [-1], [-1.0])],
    "no log-probability": [GOOD, choice(1, [4], [-1.0], logprobs={"content": []})],
    "of other tokens": [
        GOOD,
        choice(1, [4], [-1.0], logprobs={"content": [{"token_id": 5, "logprob": -1.0}]}),
    ],
    "above 0": [GOOD, choice(1, [4], [0.1])],
    "not a number": [GOOD, choice(1, [4], [float("nan")])],
    "too many tokens": [GOOD, choice(1, [4] * 4, [-1.0] * 4)],
    "none at all": [GOOD, choice(1, [], [])],
    "an unknown end": [GOOD, choice(1, [4], [-1.0], "error")],
    "of nobody's weights": [GOOD, choice(1, [4], [-1.0], weight_versions=None)],
    "no ids": [GOOD, choice(1, [4], [-1.0], token_ids=None)],
}


@pytest.mark.parametrize("fault", BAD)
def test_a_reply_that_is_no_sample_is_a_failure_and_none_of_it_is_used(fault):
    with pytest.raises(Died):
        generated(*BAD[fault])


def test_an_id_that_would_kill_a_server_is_refused_before_it_is_sent():
    with serving(lambda body, number: {}) as (address, asked):
        for prompt in ([1, 10], [-1, 3], []):
            with pytest.raises(RequestRefused, match="is no id of a vocabulary of 10"):
                client_of(address).generate(prompt, DRAW)
        assert not asked


def test_what_a_server_refuses_is_told_from_one_that_broke():
    with (
        serving(lambda body, number: 400) as (address, _),
        pytest.raises(RequestRefused, match="400"),
    ):
        client_of(address).generate([1], DRAW)
    for broken in (500, b"<html>", []):
        with serving(lambda body, number: broken) as (address, asked):  # noqa: B023
            with pytest.raises(Died):
                client_of(address).generate([1], DRAW)
            assert len(asked) == 1, "tried again"
    with pytest.raises(Died, match="Connection refused"):
        client_of(address).generate([1], DRAW)


def test_the_prefix_cache_counts_as_dropped_only_where_the_server_says_so():
    for success, is_dropped in ((True, True), (False, False), ("true", False)):
        with serving(lambda body, number: {"success": success}) as (address, asked):  # noqa: B023
            if is_dropped:
                client_of(address).forget_prompts()
            else:
                with pytest.raises(Died, match="keeps its prefix cache"):
                    client_of(address).forget_prompts()
            assert asked[0][0] == "/reset_prefix_cache"


def test_an_error_of_any_worker_is_one_of_the_server():
    replies = [{"rank": 0}, {"error": "q_proj is missing"}]
    with serving(lambda body, number: {"results": replies}) as (address, asked):
        with pytest.raises(Died, match="q_proj is missing"):
            client_of(address).check([["a", [1], "float32"]])
        replies.pop()
        assert client_of(address).check([["a", [1], "float32"]]) == 1
        assert asked[-1][2] == {
            "method": "mq3_check",
            "kwargs": {"table": [["a", [1], "float32"]]},
        }
    with (
        serving(lambda body, number: {"results": ["text"]}) as (address, _),
        pytest.raises(Died, match="not the answers of workers"),
    ):
        client_of(address).check([])


def test_pauses_wait_and_versions_are_text():
    with serving(lambda body, number: {"status": "ok"}) as (address, asked):
        client = client_of(address)
        client.pause()
        client.set_version(12)
        client.resume()
    assert [(path, body) for path, _, body in asked] == [
        ("/pause?mode=wait", {}),
        ("/update_weight_version", {"new_version": "12"}),
        ("/resume", {}),
    ]
    assert json.dumps(asked[1][2]) == '{"new_version": "12"}'


def test_no_proxy_comes_between(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    made, _ = generated(choice(0, [4], [-1.0]), choice(1, [5], [-1.0]))
    assert [x.tokens for x in made] == [[4], [5]]
    with serving(lambda body, number: {}) as (address, _):
        assert is_healthy(address.removesuffix("/v1"))


def test_who_waits_for_an_answer_can_be_freed():
    with serving(lambda body, number: lambda handler: handler.rfile.read(1)) as (address, _):
        client = client_of(address, seconds=0.2)
        with pytest.raises(Died, match=r"no reply within 0.2 s"):
            client.generate([1], DRAW)
        client.stop()
        with pytest.raises(Died, match="stopped"):
            client.generate([1], DRAW)
