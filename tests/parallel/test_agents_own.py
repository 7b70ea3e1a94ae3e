"""Agents whose engine is the weights in training: in every layout the same, with a fresh pass's
log-probs after tools' results, and tools that act on the first rank alone."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiny
from ranks import run_ranks
from test_own_rollouts import TEMPERATURE, scores

from megatron_qwen3.chat import END_TOOL_CALL, TOOL_CALL, ChatTokenizer
from megatron_qwen3.convert.stream import from_hf
from megatron_qwen3.generate.load import ModelSource, load, stop_ids, tokenizer_of
from megatron_qwen3.generate.thinking import ThinkingBudget
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.posttrain.rollouts.agents import Agents
from megatron_qwen3.posttrain.rollouts.environments import Environments, tool
from megatron_qwen3.posttrain.rollouts.own import OwnEngine
from megatron_qwen3.posttrain.rollouts.rollout import Ask, Rollout
from megatron_qwen3.settings_rollouts import AgentConfig

TOOLS = (tool("count", "Counts.", {"text": {"type": "string"}}, {}),)
CALL = json.dumps({"name": "count", "arguments": {"text": "abc"}})
CALLED = f"{TOOL_CALL}\n{CALL}\n{END_TOOL_CALL}"
MOST = 150


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    home = tmp_path_factory.mktemp("model")
    tiny.save(home / "hf")
    from_hf(home / "hf", home / "checkpoint")
    return str(home / "checkpoint")


class Counter:
    """Says on which rank it acted: it is the first, or the ranks would not agree."""

    tools = TOOLS

    def begin(self, task):
        self.task = task

    def call(self, name, arguments):
        return f"{len(arguments['text'])} a rank {os.environ['RANK']} {self.task}"

    def end(self):
        pass


class CallsFirst:
    """An engine whose first answers are calls, as a model in training does not yet write them."""

    def __init__(self, engine, call):
        self.engine, self.call, self.is_first = engine, tuple(call), True

    def refit(self, version):
        return self.engine.refit(version)

    def sample(self, asks):
        if not self.is_first:
            return self.engine.sample(asks)
        self.is_first = False
        zeros, ones = (0.0,) * len(self.call), (True,) * len(self.call)
        return [
            [
                Rollout(
                    a.task, a.prompt, self.call, zeros, ones, "stop", (7, 7), a.thinking, a.seed
                )
                for _ in range(a.samples)
            ]
            for a in asks
        ]


def sample(checkpoint, settings):
    """Groups of an agent, tokens of the call, and the score of every token."""
    source = ModelSource(Path(checkpoint))
    config = source.config(list(settings), int(os.environ["WORLD_SIZE"]))
    tokenizer = tokenizer_of(config)
    chat = ChatTokenizer(tokenizer)
    model = load(source, config, start(config))
    ends = stop_ids(source, config, tokenizer)
    budget_of = lambda tokens: ThinkingBudget.of(tokenizer, tokens)  # noqa: E731
    engine = OwnEngine(model, ends, TEMPERATURE, 64, budget_of)
    engine.refit(7)
    call = [*tokenizer.encode(CALLED).ids, chat.turn_end]
    acts = Environments(TOOLS, Counter, 2)
    agents = Agents(CallsFirst(engine, call), acts, chat, AgentConfig(environment="own:Counter"))
    prompt_of = lambda n: chat.encode_prompt([{"role": "user", "content": "a" * n}])  # noqa: E731
    asks = [Ask(f"b{n}", tuple(prompt_of(n)), n, 2, MOST, True) for n in (1, 3)]
    groups = agents.sample(asks)
    texts = [chat.decode(r.tokens) for group in groups for r in group]
    return groups, len(call), texts, scores(model, groups)


@pytest.fixture(scope="module")
def on_one_rank(checkpoint):
    return run_ranks(sample, 1, checkpoint, ())[0]


def test_log_probs_after_tools_are_those_of_a_fresh_pass(on_one_rank):
    groups, called, texts, scored = on_one_rank
    for rollout, text, expected in zip([r for g in groups for r in g], texts, scored, strict=True):
        sampled = np.array(rollout.sampled)
        assert rollout.turns == 2 and sampled[:called].all() and sampled[-1]
        assert (~sampled).sum() > 10 and not sampled[called : called + 10].any()
        assert f"<tool_response>\n3 a rank 0 {rollout.task}\n</tool_response>" in text
        sampled[:called] = False  # the script's, which has no log-probs
        difference = np.abs(np.array(rollout.log_probs) - expected)[sampled]
        assert len(difference) > 3 and difference.max() < 1e-5


@pytest.mark.parametrize("settings", [(), ("parallel.tensor=2",)])
def test_all_ranks_have_the_same_whatever_the_layout(checkpoint, on_one_rank, settings):
    for groups, _, texts, _ in run_ranks(sample, 2, checkpoint, settings):
        assert texts == on_one_rank[2]
        assert [[r.tokens for r in group] for group in groups] == [
            [r.tokens for r in group] for group in on_one_rank[0]
        ]
