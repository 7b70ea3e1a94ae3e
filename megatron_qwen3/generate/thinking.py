"""The thinking budget: cuts thinking that gets too long, after which the answer begins.

At the budget the model no longer chooses; the tokens of a fixed text that ends the think block
are inserted one by one (Qwen3 technical report, arXiv 2505.09388, section 4.3: thinking budget).

    budget = ThinkingBudget.of(tokenizer, 512)
    row = Thinking(budget, prompt)
    token = row.forced()  # the id that must come next, or None: ask the model
    row.saw(token)  # the token added, forced or chosen
"""

from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers

from megatron_qwen3.chat import END_THINK, THINK, TURN_START
from megatron_qwen3.config import ConfigError

CUT_TEXT = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the "
    f"thinking directly now.\n{END_THINK}\n\n"
)


@dataclass(frozen=True)
class ThinkingBudget:
    """At most `tokens` between `opens` and `closes`, ids of the two tags.

    cut: ids inserted; turn: id that begins a turn, None where texts have none.
    """

    tokens: int
    opens: int
    closes: int
    cut: tuple[int, ...]
    turn: int | None = None

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer, tokens: int) -> "ThinkingBudget":
        """A budget with Qwen3's text. ConfigError where the tokenizer has no think tags."""
        if tokens < 0:
            raise ConfigError(f"thinking budget = {tokens}; valid: at least 0")
        opens, closes = (tokenizer.token_to_id(tag) for tag in (THINK, END_THINK))
        if opens is None or closes is None:
            raise ConfigError(f"a thinking budget needs the tokens {THINK} and {END_THINK}")
        cut = tokenizer.encode(CUT_TEXT, add_special_tokens=False).ids
        return cls(tokens, opens, closes, tuple(cut), tokenizer.token_to_id(TURN_START))


class Thinking:
    """One row: before, within or after the think block of its turn."""

    def __init__(self, budget: ThinkingBudget, prompt: Sequence[int]) -> None:
        self.budget = budget
        self.spent: int | None = None  # tokens within the block; None: outside of it
        self.is_over = False
        self.inserting: list[int] = []
        for token in _last_turn(prompt, budget.turn):
            self.saw(token)

    def forced(self) -> int | None:
        """The id that must come next; None where the model chooses."""
        if self.spent is not None and self.spent >= self.budget.tokens:
            self.inserting = list(self.budget.cut)
            self.spent, self.is_over = None, True
        return self.inserting[0] if self.inserting else None

    def saw(self, token: int) -> None:
        """Count a token that was added to the row."""
        if self.inserting:
            self.inserting.pop(0)
        elif self.spent is not None:
            self.spent = None if token == self.budget.closes else self.spent + 1
            self.is_over = self.spent is None
        elif token == self.budget.opens and not self.is_over:
            self.spent = 0


def _last_turn(prompt: Sequence[int], turn: int | None) -> Sequence[int]:
    """The turn that is being generated: blocks of earlier turns do not count."""
    starts = [place for place, token in enumerate(prompt) if token == turn]
    return prompt[starts[-1] :] if starts else prompt
