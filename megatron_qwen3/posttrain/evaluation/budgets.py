"""Thinking budgets of an evaluation: whether an answer has room behind one, whose words count.

Where thinking is cut, a text that says so is inserted (`generate/thinking.py`). It is not the
model's: lengths of thinking leave it out, but max_tokens counts it. An endpoint may insert a text
of its own, which nobody here can tell from thinking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from megatron_qwen3.chat import END_THINK
from megatron_qwen3.config import ConfigError
from megatron_qwen3.generate.thinking import CUT_TEXT

_INSERTED = CUT_TEXT.partition(END_THINK)[0].strip()
_BEGINNING = _INSERTED.partition(",")[0].rpartition(" ")[0]  # enough to know it by
_CUT_TOKENS = 25  # that the text has with Qwen3's tokenizer, think tag included
_ANSWER_TOKENS = 32  # what an answer of one sentence takes


def check(budgets: Sequence[int], max_tokens: int) -> None:
    """ConfigError where the answer's limit ends it before a budget does."""
    if any(budget < 0 for budget in budgets):
        raise ConfigError(f"budgets = {min(budgets)}; valid: at least 0")
    if budgets and max(budgets) >= max_tokens:
        raise ConfigError(
            f"budgets = {max(budgets)} is no less than max_tokens = {max_tokens}, which counts "
            "thinking and answer: no thinking would reach the budget; raise max_tokens, or lower "
            "the budget"
        )


def cramped(
    budgets: Sequence[int], max_tokens: int, count: Callable[[str], int] | None
) -> Iterator[str]:
    """Notes on budgets behind which an answer has next to no room. count: tokens of a text, None
    where the tokenizer is not known."""
    inserted = count(CUT_TEXT) if count else _CUT_TOKENS
    for budget in sorted(set(budgets)):
        room = max_tokens - budget - inserted
        if room < _ANSWER_TOKENS:
            yield (
                f"thinking-{budget}: of max_tokens = {max_tokens} the budget and the text that is "
                f"inserted where thinking is cut ({inserted} tokens) leave {max(0, room)} for an "
                "answer"
            )


def without_inserted(thinking: str) -> str:
    """Thinking without the text, or its beginning, that was inserted at its end."""
    place = thinking.rfind(_BEGINNING)
    if place >= 0 and _INSERTED.startswith(thinking[place:].rstrip()):
        return thinking[:place].rstrip()
    return thinking
