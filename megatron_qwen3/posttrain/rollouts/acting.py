"""Runs the tool calls of many rollouts at once, each rollout's in order, with a time limit.

    actors = [Actor("task-17"), …]                       # one for each rollout, for all its turns
    answers = act(environments, actors, calls, seconds=60)     # a list of texts for each
    end(environments, actors, seconds=60)

A thread whose tool never returns is left alone: its rollout's environment is given up, and another
thread takes its place. No such thread keeps the process from ending.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Sequence

from megatron_qwen3.posttrain.rollouts.environments import Environment, Environments
from megatron_qwen3.posttrain.rollouts.tool_calls import ToolCall


class Actor:
    """The environment of one rollout, made at its first call."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._environment: Environment | None = None
        self.is_lost = False  # a call never returned

    def answer(self, environments: Environments, call: ToolCall) -> str:
        """A tool's answer to a call, or its error as text."""
        if call.fault:
            return f"error: {call.fault}"
        names = [tool["function"]["name"] for tool in environments.tools]
        if call.name not in names:
            return f"error: there is no tool {call.name!r:.80}; tools: {', '.join(names)}"
        try:
            if self._environment is None:
                environment = environments.make()
                environment.begin(self._task)
                self._environment = environment
            answer = self._environment.call(call.name, call.arguments)
        except BaseException as error:  # a user's tool may even exit
            return f"error: {type(error).__name__}: {error}"
        if not isinstance(answer, str):
            return f"error: the tool answered {answer!r:.200}, which is no text"
        return answer.encode("utf-8", "replace").decode()  # halves of characters have no tokens

    @property
    def is_begun(self) -> bool:
        """Whether the environment has begun and has to be ended."""
        return self._environment is not None and not self.is_lost

    def end(self) -> None:
        """End the environment; an error in doing so is ignored, since nobody needs it any more."""
        if self._environment is not None and self.is_begun:
            with contextlib.suppress(BaseException):  # a user's tool may even exit
                self._environment.end()


def act(
    environments: Environments,
    actors: Sequence[Actor],
    calls: Sequence[Sequence[ToolCall]],
    seconds: float,
) -> list[list[str]]:
    """The answers to the calls of each actor, in order. seconds: the limit of one call."""
    answers: list[list[str]] = [[] for _ in actors]
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    waiting = list(range(len(actors)))[::-1]
    ends: dict[int, float] = {}
    while waiting or ends:
        while waiting and len(ends) < max(1, environments.at_once):
            n = waiting.pop()
            ends[n] = time.monotonic() + seconds * len(calls[n])
            job = (environments, actors[n], calls[n], answers[n], done, n)
            threading.Thread(target=_run, args=job, daemon=True).start()
        try:
            ends.pop(done.get(timeout=max(0.0, min(ends.values()) - time.monotonic())), None)
        except queue.Empty:
            for n in [n for n, end in ends.items() if end <= time.monotonic()]:
                del ends[n]
                actors[n].is_lost = True
                answers[n] = _with_errors(answers[n], len(calls[n]), seconds)
    return answers


def end(environments: Environments, actors: Sequence[Actor], seconds: float) -> None:
    """End all environments that have begun; after `seconds` the rest are left alone."""
    begun: queue.SimpleQueue[Actor] = queue.SimpleQueue()
    for actor in actors:
        if actor.is_begun:
            begun.put(actor)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                begun.get_nowait().end()

    count = min(begun.qsize(), max(1, environments.at_once))
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    until = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _run(
    environments: Environments,
    actor: Actor,
    calls: Sequence[ToolCall],
    answers: list[str],
    done: queue.SimpleQueue[int],
    number: int,
) -> None:
    for call in calls:
        if actor.is_lost:
            text = "error: the environment was given up, since a call of it did not end"
        else:
            text = actor.answer(environments, call)
        answers.append(text)
    done.put(number)


def _with_errors(answers: Sequence[str], count: int, seconds: float) -> list[str]:
    """A copy of the answers given in time, filled up with errors; the thread keeps its own list."""
    return [*answers, *["error: no answer in time"] * (count - len(answers))][:count]
