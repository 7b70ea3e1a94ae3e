"""The thinking budget cuts exactly where it is used up, and nowhere else."""

import pytest

from data_prep import tokenizer as tokenizers
from megatron_qwen3.chat import ChatTokenizer
from megatron_qwen3.config import ConfigError
from megatron_qwen3.generate.thinking import CUT_TEXT, Thinking, ThinkingBudget

OPENS, CLOSES, TURN = 100, 101, 102
CUT = (7, 8, CLOSES, 9)


def written(prompt, model, budget, length=30):
    """Text after `prompt` of a model that says `model`, and which tokens were inserted."""
    row = Thinking(ThinkingBudget(budget, OPENS, CLOSES, CUT, TURN), prompt)
    model, tokens, inserted = iter(model), [], []
    while len(tokens) < length:
        forced = row.forced()
        token = next(model, None) if forced is None else forced
        if token is None:
            break
        row.saw(token)
        tokens.append(token)
        inserted.append(forced is not None)
    return tokens, inserted


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_thinking_is_cut_after_as_many_tokens_as_the_budget_has(budget):
    tokens, inserted = written([1, 2], [OPENS, *range(10, 10 + budget), 50, 51], budget)
    assert tokens == [OPENS, *range(10, 10 + budget), *CUT, 50, 51]
    assert inserted == [False] * (1 + budget) + [True] * len(CUT) + [False] * 2


def test_thinking_that_ends_in_time_is_left_alone():
    model = [OPENS, 10, 11, CLOSES, 12, 13, 14, 15]
    assert written([1], model, 3) == (model, [False] * 8)
    # The tag itself would be the third token: it comes in time.
    assert written([1], [OPENS, 10, 11, CLOSES, 12], 3)[0] == [OPENS, 10, 11, CLOSES, 12]
    # At two the budget is used up before the tag can come.
    assert written([1], [OPENS, 10, 11, CLOSES, 12], 2)[0] == [OPENS, 10, 11, *CUT, CLOSES, 12]


def test_a_prompt_that_opens_thinking_counts_towards_the_budget():
    assert written([1, OPENS, 5], [10, 11], 2)[0] == [10, *CUT, 11]
    assert written([1, OPENS, 5, 5, 5], [11], 2)[0] == [*CUT, 11]


def test_a_prompt_that_closed_its_block_is_left_alone():
    """As without thinking, where the prompt ends in an empty block; even if another one opens."""
    model = [10, OPENS, 11, 12, 13]
    assert written([TURN, 1, OPENS, 2, CLOSES, 2], model, 2) == (model, [False] * 5)


def test_blocks_of_earlier_turns_do_not_count():
    prompt = [TURN, OPENS, 1, CLOSES, TURN, 2]
    assert written(prompt, [OPENS, 10, 11, 12], 2)[0] == [OPENS, 10, 11, *CUT, 12]
    assert written([TURN, OPENS, 1, 1, 1, TURN, 2], [3, 4], 2)[0] == [3, 4]


def test_only_the_first_block_is_limited():
    model = [OPENS, 1, CLOSES, OPENS, 2, 3, 4, 5, CLOSES]
    assert written([], model, 2)[0] == model
    after_cut = written([], [OPENS, 1, 2, OPENS, 3, 4, 5], 2)[0]
    assert after_cut == [OPENS, 1, 2, *CUT, OPENS, 3, 4, 5]


def test_the_inserted_text_is_qwens(tmp_path):
    tokenizers.train(["Considering the limited time by the user"] * 5, 300, tmp_path)
    tokenizer = tokenizers.load(tmp_path)
    budget = ThinkingBudget.of(tokenizer, 4)
    assert CUT_TEXT.startswith("\n\nConsidering the limited time by the user, I have to give the ")
    assert CUT_TEXT.endswith("solution based on the thinking directly now.\n</think>\n\n")
    assert tokenizer.decode(budget.cut, skip_special_tokens=False) == CUT_TEXT
    assert budget.cut.count(budget.closes) == 1
    prompt = ChatTokenizer(tokenizer).encode_prompt([{"role": "user", "content": "<think> a b"}])
    assert Thinking(budget, prompt).spent is None


def test_a_tokenizer_without_think_tags_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="budget = -1"):
        ThinkingBudget.of(tokenizers.untrained(), -1)
    with pytest.raises(ConfigError, match="<think>"):
        ThinkingBudget.of(tokenizers.untrained(), 5)
