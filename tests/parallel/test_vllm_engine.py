"""The engine for vLLM on ranks, against servers that compute by transformers in vLLM's place.

They take weights by the worker extension itself, so the weights compared after a refit did arrive.
"""

import contextlib
import os
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
import transformers
from endpoint import serving
from ranks import run_ranks

from megatron_qwen3.config import ConfigError
from megatron_qwen3.convert.load import fill
from megatron_qwen3.generate.load import ModelSource, load, stop_ids, tokenizer_of
from megatron_qwen3.generate.thinking import ThinkingBudget
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.posttrain.rollouts import refit
from megatron_qwen3.posttrain.rollouts.in_server.mq3_refit import Refit
from megatron_qwen3.posttrain.rollouts.rollout import Ask
from megatron_qwen3.posttrain.rollouts.vllm import VllmEngine
from megatron_qwen3.posttrain.rollouts.vllm_client import Client
from megatron_qwen3.settings_rollouts import RolloutsConfig, VllmConfig


class Server(Refit):
    """fault: its error, or ""; calls: paths that it was asked, without questions."""

    def __init__(self, folder, fault=""):
        config = transformers.AutoConfig.from_pretrained(folder)
        transformers.set_seed(99)
        self.model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        self.fault, self.calls, self.version, self.answers = fault, [], "default", 0
        self.rank, self.lock = 0, threading.Lock()
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(hf_text_config=config))
        self.model_runner = SimpleNamespace(get_model=lambda: self.model)

    @torch.no_grad()
    def reload_weights(self, weights_iterator):
        own = self.model.state_dict()
        for name, tensor in weights_iterator:
            if self.fault != "old head" or name != "lm_head.weight":
                own[name].copy_(tensor)

    def reply(self, path, body):
        path = path.partition("?")[0]
        if path == "/health":
            return {}
        if path == "/inference/v1/generate":
            with self.lock:
                return self.generate(body["token_ids"], body["sampling_params"])
        self.calls.append(body.get("method", path))
        if body.get("method") == "mq3_from_group" and self.fault == "refuses once":
            self.fault = ""
            return 500
        if path == "/collective_rpc":
            return {"results": [getattr(self, body["method"])(**body["kwargs"])]}
        if path == "/update_weight_version":
            self.version = body["new_version"]
        return {"success": True}

    def generate(self, prompt, params):
        self.answers += 1
        if self.fault == "forgets" and self.answers == 6:
            self.version, self.fault = "default", ""
        return {"choices": [self.choice(prompt, params, k) for k in range(params["n"])]}

    @torch.no_grad()
    def choice(self, prompt, params, k):
        random = torch.Generator().manual_seed((params["seed"] + k) % (1 << 62))
        tokens, content = [], []
        while len(tokens) < params["max_tokens"]:
            logits_V = self.model(torch.tensor([[*prompt, *tokens]])).logits[0, -1]
            log_p_V = (logits_V / params["temperature"]).log_softmax(-1)
            tokens.append(int(torch.multinomial(log_p_V.exp(), 1, generator=random)))
            if self.fault == "raw":  # vLLM's own default
                log_p_V = logits_V.log_softmax(-1)
            content.append({"token_id": tokens[-1], "logprob": float(log_p_V[tokens[-1]])})
            if tokens[-1] in params["stop_token_ids"]:
                break
        return {
            "index": k,
            "token_ids": tokens,
            "finish_reason": "stop" if tokens[-1] in params["stop_token_ids"] else "length",
            "logprobs": {"content": content},
            "weight_versions": [{"version": self.version, "start": 0, "end": len(tokens)}],
        }


@contextlib.contextmanager
def running(*servers):
    """Their addresses."""
    with contextlib.ExitStack() as stack:
        found = []
        for server in servers:
            address, _ = stack.enter_context(serving(server.reply, with_path=True))
            found.append(address.removesuffix("/v1"))
        yield found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    for number in range(2):
        tiny.save(home / str(number), None, number, tie_word_embeddings=number < 0)
    return [str(home / str(number)) for number in range(2)]


def refits_watched(folders, urls, home, way):
    """Buckets, signs of life, waits, and the calls that were made outside a wait, on each rank."""
    state, unwatched, ask = Counter(), [], Client._ask

    @contextlib.contextmanager
    def waiting():
        state.update(waits=1, now=1)
        yield
        state["now"] -= 1

    def noting(self, path, *args):
        if not state["now"] and way == "folder":
            unwatched.append(path)
        return ask(self, path, *args)

    Client._ask = noting
    source = ModelSource(Path(folders[0]))
    settings = ["parallel.tensor=2"]
    config = config_of(source.config(settings, 2), urls, home, way)
    model = load(source, config, start(config))
    watched = {"alive": lambda: state.update(alive=1), "waiting": waiting}
    with VllmEngine(config, model, (2,), lambda _: None, **watched) as engine:
        engine.refit(1)
        buckets = len(engine._weights.plan(config.rollouts.vllm.bucket_bytes))
    return buckets, state["alive"], state["waits"], unwatched


@pytest.mark.parametrize("way", ["folder", "gloo"])
def test_a_refit_gives_signs_of_life_and_what_servers_take_is_no_hang(folders, tmp_path, way):
    with running(Server(folders[0])) as urls:
        results = run_ranks(refits_watched, 2, folders, urls, tmp_path, way)
    for buckets, alive, waits, unwatched in results:
        assert buckets > 2 and alive >= buckets and not unwatched
        assert waits >= 4
    assert way == "gloo" or results[0] == results[1]


def asks():
    return [
        Ask(f"task {n}", (20 + n, 21, 22), n, 2, 5, thinking=n == 1, thinking_budget=2 * (n == 1))
        for n in range(4)
    ]


def config_of(config, urls, home, way):
    served = VllmConfig(urls=tuple(urls), refit=way, bucket_bytes=20_000, restarts=1)
    return replace(
        config,
        run=replace(config.run, dir=str(home)),
        data=replace(config.data, sequence_length=64),
        rollouts=RolloutsConfig(engine="vllm", temperature=0.8, vllm=served),
    )


def sampled(folders, urls, home, settings, way, versions=(1, 2)):
    """After each folder's weights: the rollouts and the refit's result; or the error's text."""
    source = ModelSource(Path(folders[0]))
    config = source.config(list(settings), int(os.environ["WORLD_SIZE"]), generates=False)
    config = config_of(config, urls, home, way)
    tokenizer = tokenizer_of(config)
    model = load(source, config, start(config))
    ends, found, beats = stop_ids(source, config, tokenizer), [], []

    def budget_of(tokens):
        return ThinkingBudget.of(tokenizer, tokens)

    with VllmEngine(config, model, ends, budget_of, lambda: beats.append(1)) as engine:
        for folder, version in zip(folders, versions, strict=False):
            fill(model, Path(folder), verify="")
            try:
                engine.refit(version)
                engine.refit(version)  # has them
                found.append((engine.sample(asks()), engine.refits.difference))
            except ConfigError as error:
                return found, str(error)
    return found, ""


def sampled_for_the_first_rank(folders, urls, home):
    source = ModelSource(Path(folders[0]))
    config = config_of(source.config(["parallel.tensor=2"], 2), urls, home, "folder")
    model = load(source, config, start(config))
    with VllmEngine(config, model, (2,), lambda _: None, everywhere=False) as engine:
        engine.refit(1)
        return [len(group) for group in engine.sample([replace(asks()[0], samples=3)])]


def test_the_first_rank_alone_gets_rollouts_where_others_do_not_read_them(folders, tmp_path):
    with running(Server(folders[0])) as urls:
        found = run_ranks(sampled_for_the_first_rank, 2, folders, urls, tmp_path)
    assert found == [[3], []]


CASES = [
    pytest.param(("parallel.tensor=2",), "folder", id="tp2-folder"),
    pytest.param((), "folder", id="folder", marks=pytest.mark.slow),
    pytest.param(("parallel.pipeline=2",), "gloo", id="pp2-gloo", marks=pytest.mark.slow),
    pytest.param(("parallel.context=2",), "folder", id="cp2-folder", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("settings, way", CASES)
def test_servers_get_the_weights_of_any_layout_and_all_ranks_the_same_rollouts(
    folders, tmp_path, settings, way
):
    servers = [Server(folders[0]), Server(folders[0])]
    with running(*servers) as urls:
        arguments = (folders, urls, tmp_path, settings, way)
        results = run_ranks(sampled, 1 + bool(settings), *arguments)
    assert all(result == results[0] for result in results)
    found, error = results[0]
    assert not error and len(found) == 2
    for version, (groups, difference) in enumerate(found, 1):
        rollouts = [rollout for group in groups for rollout in group]
        assert difference < 1e-4 and {r.versions for r in rollouts} == {(version, version)}
        assert {r.finish for r in rollouts} <= {"stop", "length"}
    method = f"mq3_from_{'folder' if way == 'folder' else 'group'}"
    refit = ["mq3_check", "/pause", method, "/reset_prefix_cache", "/update_weight_version"]
    for server in servers:
        assert server.calls == [*refit, "/resume"] * 2, "in another order, or more often"
        assert server.answers >= 2 * 2 + 2
    own = {name: x.clone() for name, x in servers[0].model.state_dict().items()}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folders[1]).state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in own.items())


@pytest.mark.parametrize(
    "fault, settings",
    [
        ("old head", ("parallel.tensor=2",)),
        pytest.param("raw", ("parallel.tensor=2",), marks=pytest.mark.slow),
        pytest.param("old head", ("parallel.context=2",), marks=pytest.mark.slow),
    ],
)
def test_a_server_that_computes_something_else_stops_all_ranks_with_the_reason(
    folders, tmp_path, fault, settings
):
    with running(Server(folders[0]), Server(folders[0], fault)) as urls:
        arguments = (folders, urls, tmp_path, settings, "folder")
        results = run_ranks(sampled, 2, *arguments)
    for found, error in results:
        assert not found and urls[1] in error and "rollouts.vllm.difference = 0.0001" in error
        assert "does not compute as the model in training does" in error


@pytest.mark.parametrize("way", ["gloo", pytest.param("folder", marks=pytest.mark.slow)])
def test_a_server_that_came_back_without_its_weights_gets_them_in_the_middle_of_a_batch(
    folders, tmp_path, way
):
    other = Server(folders[0], "forgets")
    with running(other) as urls:
        arguments = (folders, urls, tmp_path, ("parallel.tensor=2",), way, (3,))
        results = run_ranks(sampled, 2, *arguments)
    with running(Server(folders[0])) as urls:
        arguments = (folders, urls, tmp_path / "undisturbed", (), "folder", (3,))
        expected = run_ranks(sampled, 1, *arguments)
    ((groups, _),) = results[0][0]
    assert other.calls.count("/resume") == 2 and results[0] == results[1]
    ((undisturbed, _),) = expected[0][0]
    assert [[r.tokens for r in g] for g in groups] == [[r.tokens for r in g] for g in undisturbed]
    assert {r.versions for g in groups for r in g} == {(3, 3)}


def test_a_server_that_does_not_come_to_an_exchange_is_not_waited_for_and_no_other_is_lost(
    folders, tmp_path
):
    """Within the time of one try: those who wait for each other would wait for two minutes."""
    servers = [Server(folders[0], "refuses once"), Server(folders[0])]
    with running(*servers) as urls:
        arguments = (folders, urls, tmp_path, ("parallel.tensor=2",), "gloo", (3,))
        began = time.monotonic()
        results = run_ranks(sampled, 2, *arguments)
        seconds = time.monotonic() - began
    assert results[0] == results[1] and not results[0][1]
    ((groups, difference),) = results[0][0]
    assert difference < 1e-4 and {r.versions for g in groups for r in g} == {(3, 3)}
    for server in servers:
        assert server.calls.count("mq3_from_group") == 2 and server.calls.count("/resume") == 1
    assert seconds < refit.PATIENCE_SECONDS


def test_a_server_of_another_model_is_refused_with_the_tensor_on_all_ranks(folders, tmp_path):
    tiny.save(tmp_path / "other", None, 0, intermediate_size=32)
    with running(Server(tmp_path / "other")) as urls:
        results = run_ranks(sampled, 2, folders, urls, tmp_path, ("parallel.tensor=2",), "gloo")
    for found, error in results:
        assert not found and "has shape [64, 32], this model [32, 32]" in error
        assert "rollouts.vllm.restarts = 1" in error
