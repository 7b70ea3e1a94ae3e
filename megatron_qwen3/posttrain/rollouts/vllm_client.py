"""One server of vLLM over HTTP: ids in, ids out, and the calls of a refit.

    client = Client("http://127.0.0.1:8000", vocabulary=151936, seconds=600)
    client.generate(prompt, TokenDraw(1.0, seed=7, samples=8, max_tokens=512, stops=(151645,)))

Requests set every sampling option, since a server fills missing ones from files of its own and
ignores misspelt names silently. Replies are checked before use: ids of the vocabulary, a
log-probability for each, a known end. Nothing is retried here: the caller knows whether the server
has to be restarted first. Nothing here imports torch.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from megatron_qwen3.posttrain.generators.replies import Malformed, RequestRefused
from megatron_qwen3.posttrain.generators.settings import EndpointLimits
from megatron_qwen3.posttrain.generators.wire import Failure, Wire

KEY_VARIABLE = "VLLM_API_KEY"  # vLLM's own name
_MOST_BYTES = 1 << 32
_FINISHED = ("stop", "length", "abort")
_ROUNDING = 1e-4  # by which a log-probability may exceed 0
Table = list[list[Any]]  # for each tensor: name, shape, dtype, as in `in_server/mq3_refit.py`


class Died(Exception):
    """No answer arrived, or one that only a broken server gives."""


@dataclass(frozen=True)
class TokenDraw:
    """Settings of a draw. seed: sample k draws from seed + k. stops: ids that end an answer and
    stay as its last token."""

    temperature: float
    seed: int
    samples: int
    max_tokens: int
    stops: tuple[int, ...]

    def body(self) -> dict[str, Any]:
        """vLLM's SamplingParams: all that can change tokens or log-probabilities."""
        return {
            "temperature": self.temperature,
            "seed": self.seed,
            "n": self.samples,
            "max_tokens": self.max_tokens,
            "min_tokens": 0,
            "stop_token_ids": list(self.stops),
            "ignore_eos": True,  # `stops` names the ends
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "logprobs": 0,  # only the drawn token's
            "detokenize": False,
        }


@dataclass(frozen=True)
class DrawnSample:
    """One sample. versions: of the weights that wrote its tokens, in order."""

    tokens: list[int]
    log_probs: list[float]
    finish: str
    versions: list[str]


class Client:
    """Any thread may call it. Died and RequestRefused say why there is no answer."""

    def __init__(self, url: str, vocabulary: int, seconds: float) -> None:
        self.url, self._vocabulary = url, vocabulary
        limits = EndpointLimits(
            tries=1, seconds=seconds, most_bytes=_MOST_BYTES, key_variable=KEY_VARIABLE
        )
        self._wire = Wire(url, limits, os.environ.get(KEY_VARIABLE, ""), direct=True)

    def stop(self) -> None:
        """End all waiting: open and later requests fail at once."""
        self._wire.stop()

    def generate(self, prompt: Sequence[int], draw: TokenDraw) -> list[DrawnSample]:
        """The samples in order. RequestRefused, unsent, where an id would crash the server."""
        for token in (min(prompt, default=-1), max(prompt, default=-1)):
            if not 0 <= token < self._vocabulary:
                raise RequestRefused(
                    f"token {token:,} is no id of a vocabulary of {self._vocabulary:,}"
                )
        body = {"token_ids": list(prompt), "sampling_params": draw.body()}
        path = "/inference/v1/generate"
        made: list[DrawnSample] = self._ask(path, body, lambda reply: self._drawn(reply, draw))
        return made

    def call(self, method: str, **arguments: Any) -> list[dict[str, Any]]:
        """Each worker's result of a method of `mq3_refit.Refit`. Died where one has an error."""
        body = {"method": method, "kwargs": arguments}
        results: list[dict[str, Any]] = self._ask("/collective_rpc", body, _results)
        for result in results:
            if "error" in result:
                raise Died(f"{self.url}: {result['error']}")
        return results

    def look(self) -> None:
        """Died or RequestRefused where no server answers that takes a run's weights, or it rejects
        the key; changes nothing."""
        self._ask("/collective_rpc", {"method": "mq3_check", "kwargs": {"table": []}}, _results)

    def check(self, table: Table) -> int:
        """The number of its workers; they check that these tensors are their model's."""
        return len(self.call("mq3_check", table=table))

    def pause(self) -> None:
        """Let open requests finish, and begin no others."""
        self._ask(f"/pause?{urlencode({'mode': 'wait'})}", {}, _table)

    def resume(self) -> None:
        self._ask("/resume", {}, _table)

    def forget_prompts(self) -> None:
        """Drop the prefix cache, whose prompts were read with other weights."""
        reply = self._ask("/reset_prefix_cache", {}, _table)
        if reply.get("success") is not True:
            raise Died(f"{self.url} keeps its prefix cache: {reply}")

    def set_version(self, version: int) -> None:
        self._ask("/update_weight_version", {"new_version": str(version)}, _table)

    def _ask(self, path: str, body: dict[str, Any], take: Any) -> Any:
        try:
            return self._wire.ask(path, body, take)
        except Failure as error:
            raise Died(f"{self.url}: {error}") from None

    def _drawn(self, reply: Any, draw: TokenDraw) -> list[DrawnSample]:
        choices = _table(reply).get("choices")
        if not isinstance(choices, list) or len(choices) != draw.samples:
            raise Malformed(f"not {draw.samples} choices: {repr(choices)[:200]}")
        try:
            choices = sorted(choices, key=lambda choice: choice["index"])
            return [self._choice(choice, draw.max_tokens) for choice in choices]
        except (LookupError, TypeError, ValueError) as error:
            raise Malformed(f"a choice lacks a field of rollouts: {error!r}") from None

    def _choice(self, choice: dict[str, Any], most: int) -> DrawnSample:
        tokens = [int(token) for token in choice["token_ids"]]
        content = choice["logprobs"]["content"] if tokens else []
        log_probs = [float(entry["logprob"]) for entry in content]
        if [entry["token_id"] for entry in content] != tokens or len(tokens) > most:
            raise ValueError("log-probabilities of other tokens than were chosen")
        if any(not 0 <= token < self._vocabulary for token in tokens):
            raise ValueError("a token is no id of the vocabulary")
        if any(not math.isfinite(x) or x > _ROUNDING for x in log_probs):
            raise ValueError("a log-probability is none")
        if choice["finish_reason"] not in _FINISHED:
            raise ValueError(f"finish_reason = {choice['finish_reason']!r}")
        if not tokens and choice["finish_reason"] != "abort":
            raise ValueError("an answer of no token")
        versions = [str(span["version"]) for span in choice["weight_versions"] or ()]
        if tokens and not versions:
            raise ValueError("weight_versions does not say whose tokens these are")
        return DrawnSample(tokens, log_probs, choice["finish_reason"], versions)


def _table(reply: Any) -> dict[str, Any]:
    if not isinstance(reply, dict):
        raise Malformed(f"the reply is no table: {repr(reply)[:200]}")
    return reply


def _results(reply: Any) -> list[dict[str, Any]]:
    results = _table(reply).get("results")
    if (
        not isinstance(results, list)
        or not results
        or not all(isinstance(r, dict) for r in results)
    ):
        raise Malformed(f"not the answers of workers: {repr(reply)[:200]}")
    return results
