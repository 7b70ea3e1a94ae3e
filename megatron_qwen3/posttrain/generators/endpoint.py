"""An endpoint that speaks OpenAI's protocol, as a generator: `Endpoint(address, limits)`.

    with Endpoint("http://localhost:8000/v1#qwen3", EndpointLimits(concurrency=32)) as endpoint:
        for number, answers in endpoint.answers(requests): ...

Replies are not trusted: their size and time are bounded, they are JSON of the right form or an
error, and after the retries that may help an error becomes an answer that states it. Redirections
are not followed, because the key would go with them. The key stands only in an environment
variable; it is removed from errors that repeat it. Nothing here imports torch.
"""

import os
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.generators.answers import Answer, Request, failed, said
from megatron_qwen3.posttrain.generators.replies import (
    LockedOut,
    RequestRefused,
    ShutOut,
    answers_of,
    models_of,
)
from megatron_qwen3.posttrain.generators.settings import EndpointLimits
from megatron_qwen3.posttrain.generators.wire import Failure, Senseless, Unreachable, Wire

# Fields of a request that an endpoint may not support, with the effect of leaving each out. A
# budget of thinking is not among them: answers without it are answers to another question.
_OPTIONAL = {
    "top_k": "answers are drawn without top_k",
    "chat_template_kwargs": "whether to think is left to the endpoint",
    "seed": "another run gets other answers",
    "n": "samples are asked for one by one",
    "top_p": "answers are drawn without top_p",
    "temperature": "the endpoint draws at a temperature of its own",
}
_MOST_LISTED = 20  # models in an error
_LENGTH = "max_tokens"  # some endpoints call it max_completion_tokens


class Named(NamedTuple):
    """An endpoint's settings as errors name them: the address; the model, empty for #MODEL after
    the address; the setting of the key's variable, empty where the variable is fixed."""

    address: str = ""
    model: str = ""
    key: str = "--key-variable"


UNNAMED = Named()  # for a command whose option is an address


class Endpoint:
    """A generator; `model` and `label`: the name that requests ask for."""

    leads = True

    def __init__(self, name: str, limits: EndpointLimits, named: Named = UNNAMED) -> None:
        """`name`: the address, and after # a model's name. ConfigError where it is no address."""
        address, _, model = name.partition("#")
        self.label = self.model = model
        self.address = _checked(address)
        self.limits, self._named = limits, named
        self.notes: list[str] = []
        self._left_out: set[str] = set()
        self._lock = threading.Lock()
        self._locked_out = ""  # the reason to send no more requests
        self.wire = Wire(self.address, limits, _key(limits.key_variable))

    def __enter__(self) -> Self:
        """ConfigError where the model is not named and the endpoint does not serve one alone."""
        if not self.model:
            self.label = self.model = self._only_model()
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.stop()

    def follow(self) -> None:
        raise AssertionError("an endpoint has no other ranks")

    def answers(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """Yields (number, answers) as they arrive; reads a request only when it can be sent."""
        done: queue.Queue[tuple[int, list[Answer]]] = queue.Queue()
        todo: queue.Queue[tuple[int, Request] | None] = queue.Queue()
        threads = [
            threading.Thread(target=self._work, args=(todo, done), daemon=True)
            for _ in range(self.limits.concurrency)
        ]
        under_way = 0
        try:
            for numbered in enumerate(requests):
                if under_way < len(threads):
                    threads[under_way].start()
                    under_way += 1
                else:
                    yield done.get()
                todo.put(numbered)
            for _ in range(under_way):
                yield done.get()
        finally:
            for _ in threads:
                todo.put(None)

    def check(self, request: Request) -> None:
        """Send one request, after entering. ConfigError names the setting at fault where the
        endpoint does not answer."""
        try:
            self._several(request, 1, request.seed)
        except (Failure, RequestRefused) as error:
            raise ConfigError(self.fault(error)) from None

    def _work(
        self,
        todo: queue.Queue[tuple[int, Request] | None],
        done: queue.Queue[tuple[int, list[Answer]]],
    ) -> None:
        while (numbered := todo.get()) is not None:
            number, request = numbered
            try:
                answers = self._samples(request)
            except Exception as error:  # hand any error to the waiting caller
                answers = failed(request, f"{type(error).__name__}: {error}")
            done.put((number, answers))

    def _samples(self, request: Request) -> list[Answer]:
        """All samples in one request where the endpoint allows it, else one by one."""
        found: list[Answer] = []
        if self._locked_out:
            return [_locked_out(self._locked_out)] * request.samples
        while (left := request.samples - len(found)) > 0:
            try:
                found += self._several(request, left, request.seed + len(found))[:left]
            except LockedOut as error:
                self._locked_out = f"{error}; {self._about_key()}"
                return found + [_locked_out(self._locked_out)] * left
            except (Failure, RequestRefused) as error:
                is_refused = isinstance(error, RequestRefused) and not isinstance(error, ShutOut)
                return found + failed(replace(request, samples=left), str(error), is_refused)
        return found

    def _several(self, request: Request, samples: int, seed: int) -> list[Answer]:
        """At least one answer: an endpoint may refuse `n` above 1, in words of its own."""
        try:
            return self._ask(request, samples, seed)
        except RequestRefused:
            if samples == 1 or "n" in self._left_out:
                raise
        answers = self._ask(request, 1, seed)
        self._forget("n")
        return answers

    def _ask(self, request: Request, samples: int, seed: int) -> list[Answer]:
        """At least one answer, or Failure, or RequestRefused.

        Fields that a refusal names are left out of this request, and of later ones only if it then
        succeeds: a refusal that merely quotes the request changes nothing for the others.
        """
        without: set[str] = set()
        while True:
            body = self._body(request, samples, seed, without)
            try:
                answers = self.wire.ask("/chat/completions", body, answers_of)
            except RequestRefused as error:
                named = _named(str(error), body)
                if not named:
                    raise
                without |= named
            else:
                for name in sorted(without):
                    self._forget(name)
                return answers

    def _forget(self, name: str) -> None:
        """Leave a field out of all later requests, with one note."""
        with self._lock:
            if name not in self._left_out:
                self._left_out.add(name)
                told = _OPTIONAL.get(name)
                self.notes += [f"{self.address} does not take {name}: {told}"] if told else []

    def _body(self, request: Request, samples: int, seed: int, without: set[str]) -> dict[str, Any]:
        with self._lock:
            left_out = self._left_out | without
        length = "max_completion_tokens" if _LENGTH in left_out else _LENGTH
        body = {
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            length: request.max_tokens,
            "seed": seed,
        }
        if samples > 1:
            body["n"] = samples
        if request.tools:
            body["tools"] = list(request.tools)
        if not request.enable_thinking:
            body["chat_template_kwargs"] = {"enable_thinking": False}
        if request.thinking_budget is not None:
            body["thinking_token_budget"] = request.thinking_budget
        body |= said(request, None)
        return {name: value for name, value in body.items() if name not in left_out}

    def _about_key(self) -> str:
        variable = self.limits.key_variable
        told = "is not taken" if _key(variable) else "is missing"
        where = f" ({self._named.key})" if self._named.key else ""
        return f"the key in the environment variable {variable} {told}{where}"

    @property
    def _told(self) -> str:
        """The address, preceded by its setting where there is one."""
        return f"{self._named.address} = {self.address}" if self._named.address else self.address

    @property
    def _how_to_name(self) -> str:
        if self._named.model:
            return f"set {self._named.model}"
        return f"name one, as {self.address}#MODEL"

    def fault(self, error: Failure | RequestRefused) -> str:
        """Why the endpoint does not answer, and the setting to look at. After a refusal this asks
        the endpoint whether it serves a model of that name."""
        if isinstance(error, LockedOut):
            return f"{self._told}: {error}; {self._about_key()}"
        if isinstance(error, Unreachable):
            return (
                f"{self._told} cannot be reached ({error}); is it running, and is that its address?"
            )
        if isinstance(error, Senseless):
            return (
                f"{self._told} does not speak OpenAI's protocol ({error}); is that its address, up "
                "to /v1?"
            )
        served = self._served() if isinstance(error, RequestRefused) else []
        if served and self.model not in served:
            listed = ", ".join(served[:_MOST_LISTED])
            return f"{self._told} serves no {self.model!r}, but {listed}; {self._how_to_name}"
        return f"{self._told} does not answer ({error})"

    def _served(self) -> list[str]:
        """The models that the endpoint lists; empty where it lists none."""
        try:
            return self.wire.ask("/models", None, models_of)
        except (Failure, RequestRefused):
            return []

    def _only_model(self) -> str:
        try:
            names = self.wire.ask("/models", None, models_of)
        except (LockedOut, Unreachable, Senseless) as error:
            raise ConfigError(self.fault(error)) from None
        except (Failure, RequestRefused) as error:
            raise ConfigError(
                f"{self._told}: it does not list its models ({error}); {self._how_to_name}"
            ) from None
        if len(names) != 1:
            listed = ", ".join(names[:_MOST_LISTED]) or "none"
            raise ConfigError(
                f"{self._told} serves {len(names)} models ({listed}); {self._how_to_name}"
            )
        return str(names[0])


def _locked_out(reason: str) -> Answer:
    return Answer("", "error", None, reason, is_locked_out=True)


def _named(message: str, body: Mapping[str, Any]) -> set[str]:
    """Optional fields of the body that an error message names; `n` counts only in quotes."""
    quoted = {f"{quote}n{quote}" for quote in "'\"`"}
    named = {name for name in _OPTIONAL if len(name) > 1 and name in message}
    if any(text in message for text in quoted):
        named.add("n")
    if "max_completion_tokens" in message:
        named.add(_LENGTH)
    return named & set(body)


def _key(variable: str) -> str:
    """The key. ConfigError, without the key in it, where it has characters a header cannot have."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the key in {variable} has characters that an HTTP header cannot carry")
    return key


def _checked(address: str) -> str:
    """The address without a slash at its end. ConfigError never repeats a password."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"an endpoint's address makes no sense ({error})") from None
    if parts.username is not None or parts.password is not None or parts.query:
        raise ConfigError(
            f"the address of {host} has a user, a password or a query in it; a key belongs into "
            "an environment variable (OPENAI_API_KEY)"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"{address} is no address of an endpoint; valid: http(s)://HOST/v1")
    return address.rstrip("/")
