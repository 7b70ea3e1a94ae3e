"""The conditions of an evaluation: mode, budget, and dialogs whose flags change the mode.

    conditions(modes=("thinking",), budgets=(128, 512))     # thinking, thinking-128, thinking-512
    dialogs(tasks, count=100, seed=0)                       # to measure obedience to flags

A dialog for obedience has one to four queries of the tasks, each with /think, /no_think, both or
neither, some with a flag in a system message; the last flag of all decides (`chat.thinks`).
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_qwen3.chat import thinks
from megatron_qwen3.posttrain.evaluation.task import Task

THINKING, NOT_THINKING = "thinking", "non-thinking"
MODES = (THINKING, NOT_THINKING)
_MOST_TURNS = 4
_FLAGS = ("", "", "/think", "/no_think", "/think /no_think", "/no_think /think")
_SYSTEM = ("", "", "", "/think", "/no_think")
_SAID = "You are a helpful assistant."
_ANSWERED = "I have answered that."  # an earlier turn: its content does not matter for the mode


@dataclass(frozen=True)
class Condition:
    """budget: most tokens of thinking, None: only max_tokens limits it."""

    mode: str
    budget: int | None = None

    @property
    def thinks(self) -> bool:
        return self.mode == THINKING

    @property
    def name(self) -> str:
        return self.mode if self.budget is None else f"{self.mode}-{self.budget}"


@dataclass(frozen=True)
class FlaggedDialog:
    """A dialog to be answered in the mode of its last flag."""

    messages: tuple[Mapping[str, Any], ...]
    thinks: bool
    turns: int


def conditions(modes: Sequence[str], budgets: Sequence[int]) -> list[Condition]:
    """Each mode, and thinking with each budget."""
    found = [Condition(mode) for mode in MODES if mode in modes]
    return found + [Condition(THINKING, budget) for budget in sorted(set(budgets))]


def dialogs(tasks: Sequence[Task], count: int, seed: int) -> list[FlaggedDialog]:
    """`count` dialogs of the tasks' queries, the same for the same tasks and seed."""
    texts = [str(task.messages[-1]["content"]) for task in tasks]
    chance = random.Random(seed)
    return [_dialog(texts, chance) for _ in range(count)]


def _dialog(texts: Sequence[str], chance: random.Random) -> FlaggedDialog:
    turns = chance.randint(1, _MOST_TURNS)
    messages = list(_messages(chance.choices(texts, k=turns), chance))
    return FlaggedDialog(tuple(messages), thinks(messages), turns)


def _messages(queries: Sequence[str], chance: random.Random) -> Iterator[dict[str, Any]]:
    if flag := chance.choice(_SYSTEM):
        yield {"role": "system", "content": f"{_SAID} {flag}"}
    for place, query in enumerate(queries):
        flag = chance.choice(_FLAGS)
        yield {"role": "user", "content": f"{query} {flag}".strip()}
        if place < len(queries) - 1:
            yield {"role": "assistant", "content": _ANSWERED}
