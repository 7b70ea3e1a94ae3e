"""The result of a task generator, and the source of randomness that generators share.

    def countdown(draw: TaskDraw) -> Made: ...

A generator is a function of a `TaskDraw` alone, a random number generator that knows a few
languages: equal draws give equal tasks, on every machine.
"""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from megatron_qwen3.chat import END_TOOL_CALL, TOOL_CALL

ENGLISH, GERMAN, FRENCH, SPANISH, CHINESE = "en", "de", "fr", "es", "zh"
LANGUAGES = (ENGLISH, GERMAN, FRENCH, SPANISH, CHINESE)
_AS_TAGGED = {
    ENGLISH: "Give the final answer, and nothing else, between <answer> and </answer>.",
    GERMAN: "Schreibe die endgültige Antwort, und nichts sonst, zwischen <answer> und </answer>.",
    FRENCH: "Donne la réponse finale, et rien d'autre, entre <answer> et </answer>.",
    SPANISH: "Da la respuesta final, y nada más, entre <answer> y </answer>.",
    CHINESE: "请把最终答案写在 <answer> 和 </answer> 之间，不要写其他内容。",
}


class Made(NamedTuple):
    """A task without its number. text: the user's message; gold: a right answer, as a model would
    write it, "" where only a judge can score; system: the role for the model to play."""

    text: str
    verifier: Mapping[str, Any] = {}
    gold: str = ""
    language: str = ENGLISH
    tools: tuple[Mapping[str, Any], ...] = ()
    checklist: tuple[str, ...] = ()
    system: str = ""


class TaskDraw(random.Random):
    """Random choices of one task, by its kind, seed and number."""

    def __init__(self, kind: str, seed: int, number: int) -> None:
        super().__init__(f"{kind}/{seed}/{number}")  # by SHA-512, equal on every machine

    def wording(self, by_language: Mapping[str, Sequence[str]]) -> tuple[str, str]:
        """(language, one of its wordings); half of the draws are English."""
        others = [name for name in by_language if name != ENGLISH]
        is_english = not others or (ENGLISH in by_language and self.random() < 0.5)
        language = ENGLISH if is_english else self.choice(others)
        return language, self.choice(list(by_language[language]))


def tagged(language: str) -> str:
    """The instruction to put the final answer between tags."""
    return f"\n\n{_AS_TAGGED[language]}"


def as_calls(calls: Sequence[Mapping[str, Any]]) -> str:
    """Calls of tools as Qwen3 writes them; arguments as JSON."""
    lines = (json.dumps(dict(call), ensure_ascii=False) for call in calls)
    return "\n".join(f"{TOOL_CALL}\n{line}\n{END_TOOL_CALL}" for line in lines)
