"""Environments of agents' tools: `python` (the sandbox), `search` (a corpus), or a user's class.

    with opened(config.rollouts.agent) as environments:
        environments.tools               # JSON schemas, to be put into prompts
        environment = environments.make()
        environment.begin("task-17")
        environment.call("python", {"code": "print(6 * 7)"})     # "42"
        environment.end()

Each rollout has an environment of its own. A user's class has the methods of `Environment`, takes
no arguments, and lies in a module that Python finds, e.g. by PYTHONPATH. torch is not imported.
"""

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from megatron_qwen3.config import ConfigError
from megatron_qwen3.cores import cores
from megatron_qwen3.posttrain.rollouts.corpus import Corpus
from megatron_qwen3.posttrain.sandbox import Sandbox
from megatron_qwen3.posttrain.sandbox.exam import reason_of
from megatron_qwen3.settings_rollouts import AgentConfig

PYTHON, SEARCH = "python", "search"
_AT_ONCE = 32  # rollouts whose tools run at once, where tools do not need the processor
_MOST_FOUND = 20
_OURS = re.compile(r'^  File "<string>", line \d+, in <module>\n', re.M)

Tools = tuple[Mapping[str, Any], ...]


class Environment(Protocol):
    """One rollout's environment. An exception of `call` reaches the model as "error: …"."""

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """The tools of the class, in OpenAI's form: {"type": "function", "function": {"name",
        …}}."""
        ...

    def begin(self, task: str) -> None:
        """Called before the first call. task: the id of the task."""
        ...

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """A tool's answer; a rollout's calls come one after another, from any thread."""
        ...

    def end(self) -> None:
        """Called after the last call, if `begin` was called."""
        ...


@dataclass(frozen=True)
class Environments:
    """tools: schemas. make: makes a rollout's environment. at_once: how many may run."""

    tools: Tools
    make: Callable[[], Environment]
    at_once: int


@contextmanager
def opened(settings: AgentConfig, leads: bool = True) -> Iterator[Environments]:
    """The environments that the settings name, usable where this process `leads`; elsewhere only
    their tools.

    ConfigError, in one line, where they are not available.
    """
    if settings.environment == PYTHON:
        if not leads:
            yield Environments(Python.tools, _nowhere, 0)
            return
        with Sandbox() as sandbox:
            yield Environments(Python.tools, partial(Python, sandbox), sandbox.workers)
    elif settings.environment == SEARCH:
        corpus = Corpus.read(settings.corpus) if leads else None
        make = _nowhere if corpus is None else partial(CorpusSearch, corpus)
        yield Environments(CorpusSearch.tools, make, cores())
    else:
        own = _own(settings.environment)
        yield Environments(tuple(own.tools), own, _AT_ONCE)


def tools_of(settings: AgentConfig) -> Tools:
    """The tools of the settings' environment; empty without one."""
    if not settings.environment:
        return ()
    with opened(settings, leads=False) as found:
        return found.tools


def check(settings: AgentConfig) -> None:
    """ConfigError, in one line, where the environment is not available on this machine."""
    if settings.environment:
        with opened(settings):
            pass


def _nowhere() -> Environment:
    raise RuntimeError("tools act on the first rank alone")


def _own(name: str) -> Any:
    """The class that `module:Class` names."""
    module, _, attribute = name.partition(":")
    setting = f"rollouts.agent.environment = {name!r}"
    try:
        own = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(
            f"{setting} cannot be imported ({type(error).__name__}: {error}); valid: {PYTHON}, "
            f"{SEARCH}, or module:Class with the module on PYTHONPATH"
        ) from None
    if missing := [part for part in ("tools", "begin", "call", "end") if not hasattr(own, part)]:
        raise ConfigError(f"{setting} has no {missing[0]}; valid: tools, begin, call and end")
    if fault := _fault(own.tools):
        raise ConfigError(f"{setting}: {fault}")
    return own


def _fault(tools: Any) -> str:
    for tool in tools if isinstance(tools, Sequence) else (tools,):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            return (
                f"tools has {tool!r:.80}; valid: objects like "
                '{"type": "function", "function": {"name": …, "parameters": …}}'
            )
    return "" if tools else "tools is empty"


def tool(name: str, about: str, needed: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
    """A tool's schema, as prompts have it. needed, more: properties of its arguments."""
    parameters = {"type": "object", "properties": {**needed, **more}, "required": list(needed)}
    function = {"name": name, "description": about, "parameters": parameters}
    return {"type": "function", "function": function}


class Python:
    """A Python interpreter that runs one program per call and keeps nothing between calls.

    So a call depends only on its text: results can be cached, and a rollout can be repeated.
    """

    tools: Tools = (
        tool(
            PYTHON,
            "Run a Python program in a sandbox and return what it prints. Standard library only, "
            "no network. Every call is a new process: nothing is kept between calls.",
            {"code": {"type": "string", "description": "The whole program."}},
            {},
        ),
    )

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def begin(self, task: str) -> None:
        """Does nothing: calls share no state."""

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The program's output, then why it ended, if not by itself."""
        outcome = self._sandbox.run(_text(arguments, "code"))
        if outcome.failure:
            raise RuntimeError(f"the sandbox failed: {outcome.failure}")
        end = reason_of(outcome, self._sandbox.limits)
        if not end and outcome.status and not outcome.stderr:
            end = f"it ended with status {outcome.status}"
        parts = (outcome.stdout, _OURS.sub("", outcome.stderr), f"error: {end}" if end else "")
        return "\n".join(part.rstrip() for part in parts if part.strip()) or "(it printed nothing)"

    def end(self) -> None:
        """Does nothing: calls share no state."""


class CorpusSearch:
    """Search in a corpus by the words of a query."""

    tools: Tools = (
        tool(
            SEARCH,
            "Search a collection of texts by words and return the best matches with their ids.",
            {"query": {"type": "string", "description": "Words to look for."}},
            {"results": {"type": "integer", "description": "How many texts to return (3)."}},
        ),
    )

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def begin(self, task: str) -> None:
        """Does nothing: calls share no state."""

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The texts, best first, each after its id in brackets."""
        query, results = _text(arguments, "query"), arguments.get("results", 3)
        if type(results) is not int or not 1 <= results <= _MOST_FOUND:
            raise ValueError(f"results = {results!r:.50}; valid: 1 to {_MOST_FOUND}")
        found = self._corpus.search(query, results)
        return "\n\n".join(f"[{name}] {text}" for name, text in found) or "(nothing found)"

    def end(self) -> None:
        """Does nothing: calls share no state."""


def _text(arguments: Mapping[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} = {value!r:.50}; valid: a text")
    return value
