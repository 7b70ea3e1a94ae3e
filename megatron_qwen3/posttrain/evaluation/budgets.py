"""Thinking budgets of an evaluation: room for an answer, and lengths without inserted text.

Where a budget cuts thinking, a closing text is inserted (`generate/thinking.py`). The model did not
write it, so lengths of thinking exclude it, but max_tokens counts it. An endpoint may insert a text
of its own, which cannot be told from thinking.
"""

from collections.abc import Callable, Iterator, Sequence

from megatron_qwen3.chat import END_THINK
from megatron_qwen3.config import ConfigError
from megatron_qwen3.generate.thinking import CUT_TEXT

_INSERTED = CUT_TEXT.partition(END_THINK)[0].strip()
_BEGINNING = _INSERTED.partition(",")[0].rpartition(" ")[0]  # enough to recognize it
_CUT_TOKENS = 25  # of the text by Qwen3's tokenizer, think tag included
_ANSWER_TOKENS = 32  # of an answer of one sentence


def check(budgets: Sequence[int], max_tokens: int) -> None:
    """ConfigError where the answer's limit would end it before a budget does."""
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
    """Notes on budgets that leave next to no room for an answer. count: tokens of a text, None
    where the tokenizer is unknown."""
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
    """Thinking without the text, whole or cut, that a budget inserted at its end."""
    place = thinking.rfind(_BEGINNING)
    if place >= 0 and _INSERTED.startswith(thinking[place:].rstrip()):
        return thinking[:place].rstrip()
    return thinking
