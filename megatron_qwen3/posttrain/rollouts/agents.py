"""Rollouts of several turns: the model calls tools, and their answers become part of the rollout.

    agents = Agents(engine, environments, chat, config.rollouts.agent)     # a RolloutEngine, too
    agents.sample(asks)          # on all ranks; tools act on the first alone

Where the model's turn calls tools and ends with `<|im_end|>`, the tools' answers follow as the chat
template writes them, and the model goes on, until a turn has no calls or the limit of turns or
tokens is reached: then the rollout is truncated. All turns, tools' answers included, share one
max_new_tokens. The engine's ids are kept as they are and never encoded again; the ids of tools'
answers are marked as not sampled, with log-prob 0.

Without thinking, each turn begins with the empty think block of its prompt. (The template renders
whole conversations and drops this block from all turns but the last.)

A tool that is unknown, called wrongly, raises or takes too long gives the answer "error: …".
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

from megatron_qwen3 import launcher
from megatron_qwen3.chat import ChatTokenizer
from megatron_qwen3.parallel.first import of_first
from megatron_qwen3.posttrain.rollouts.acting import Actor, act, end
from megatron_qwen3.posttrain.rollouts.environments import Environments
from megatron_qwen3.posttrain.rollouts.rollout import (
    LENGTH,
    STOP,
    Ask,
    Rollout,
    RolloutEngine,
)
from megatron_qwen3.posttrain.rollouts.tool_calls import ToolCall, answers_ids, calls_of, header_of
from megatron_qwen3.settings_rollouts import AgentConfig


@dataclass
class _Dialog:
    """A rollout in progress. finish: "" until it ends."""

    ask: Ask
    number: int  # of the sample
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    seed: int = 0
    turns: int = 0
    finish: str = ""
    error: str = ""

    def take(self, rollout: Rollout) -> None:
        """Append the model's turn; the caller then answers its calls."""
        self.seed = self.seed if self.turns else rollout.seed
        self.tokens += rollout.tokens
        self.log_probs += rollout.log_probs
        self.sampled += rollout.sampled
        self.versions += rollout.versions
        self.turns += 1
        self.finish, self.error = rollout.finish, rollout.error

    def add(self, ids: Sequence[int]) -> None:
        """Append ids that were not sampled."""
        self.tokens += ids
        self.log_probs += [0.0] * len(ids)
        self.sampled += [False] * len(ids)

    def next_ask(self) -> Ask:
        """The task with all turns so far as its prompt; the seed depends on sample and turn."""
        ask = self.ask
        words = f"{ask.seed}/{self.number}/{self.turns}".encode()
        seed = int.from_bytes(hashlib.sha256(words).digest()[:4], "big") >> 1
        return Ask(
            ask.task,
            (*ask.prompt, *self.tokens),
            seed,
            1,
            ask.max_new_tokens - len(self.tokens),
            ask.thinking,
            ask.thinking_budget,
        )

    def rollout(self) -> Rollout:
        return Rollout(
            self.ask.task,
            self.ask.prompt,
            tuple(self.tokens),
            tuple(self.log_probs),
            tuple(self.sampled),
            self.finish,
            (self.versions[0], self.versions[-1]),
            self.ask.thinking,
            self.seed,
            self.turns,
            self.error,
        )


class Agents:
    """A RolloutEngine. beat: called on all ranks before tools run; waiting: a context that they
    hold while tools run, which have a time limit of their own."""

    def __init__(
        self,
        engine: RolloutEngine,
        environments: Environments,
        chat: ChatTokenizer,
        settings: AgentConfig,
        beat: Callable[[], None] = lambda: None,
        waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._engine, self._environments, self._chat = engine, environments, chat
        self._settings, self._beat, self._waiting = settings, beat, waiting

    def refit(self, version: int) -> dict[str, float]:
        """Sample by the current weights from now on."""
        return self._engine.refit(version)

    def sample(self, asks: Sequence[Ask]) -> list[list[Rollout]]:
        """The samples of each ask, equal on every rank."""
        groups = [[_Dialog(ask, number) for number in range(ask.samples)] for ask in asks]
        dialogs = [dialog for group in groups for dialog in group]
        actors = [Actor(dialog.ask.task) for dialog in dialogs]
        said = [rollout for group in self._engine.sample(asks) for rollout in group]
        going = list(range(len(dialogs)))
        try:
            while going:
                for n, rollout in zip(going, said, strict=True):
                    self._take(dialogs[n], rollout)
                going = [n for n in going if dialogs[n].calls]
                self._answer([dialogs[n] for n in going], [actors[n] for n in going])
                going = [n for n in going if not dialogs[n].finish]
                asked = self._engine.sample([dialogs[n].next_ask() for n in going]) if going else []
                said = [rollout for group in asked for rollout in group]
        finally:
            with self._waiting():
                end(self._environments, actors, self._settings.call_seconds)
        return [[dialog.rollout() for dialog in group] for group in groups]

    def _take(self, dialog: _Dialog, rollout: Rollout) -> None:
        """Append the model's turn to the dialog and find the calls to be answered."""
        dialog.take(rollout)
        is_closed = dialog.tokens[-1:] == [self._chat.turn_end]
        dialog.calls = []
        if rollout.finish == STOP and is_closed:
            dialog.calls = calls_of(self._chat.decode(rollout.tokens[:-1]))
        if dialog.calls and dialog.turns >= self._settings.turns:
            dialog.finish, dialog.calls = LENGTH, []

    def _answer(self, dialogs: Sequence[_Dialog], actors: Sequence[Actor]) -> None:
        """Run each dialog's tools and append their answers; a dialog without room for them has
        reached its limit."""
        self._beat()
        answers = self._acted(dialogs, actors)
        for dialog, texts in zip(dialogs, answers, strict=True):
            header = header_of(self._chat, dialog.ask.prompt)
            ids = answers_ids(self._chat, [self._cut(text) for text in texts], header)
            has_room = len(dialog.tokens) + len(ids) < dialog.ask.max_new_tokens
            dialog.finish = "" if has_room else LENGTH
            if has_room:
                dialog.add(ids)

    def _acted(self, dialogs: Sequence[_Dialog], actors: Sequence[Actor]) -> list[list[str]]:
        """The answers to the calls of each dialog; tools run on the first rank."""
        calls = [dialog.calls for dialog in dialogs]
        answer = partial(act, self._environments, actors, calls, self._settings.call_seconds)
        if not calls:
            return []
        with self._waiting():
            return answer() if launcher.world_size() == 1 else of_first(answer)

    def _cut(self, text: str) -> str:
        most = self._settings.answer_tokens
        kept = self._chat.cut(text, most)
        return text if kept == text else f"{kept}\n(cut after {most} tokens)"
