"""What samples a run's rollouts: `with open_engine(config, model, tokenizer, beat) as engine`.

rollouts.engine says which, rollouts.agent whether it calls tools; all ranks open and ask it alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from megatron_qwen3 import launcher
from megatron_qwen3.chat import ChatTokenizer
from megatron_qwen3.generate.load import ends_of
from megatron_qwen3.generate.thinking import ThinkingBudget
from megatron_qwen3.hub import tokenizer_folder
from megatron_qwen3.parallel.first import of_first
from megatron_qwen3.posttrain.rewards import model_settings
from megatron_qwen3.posttrain.rollouts import environments, vllm_check
from megatron_qwen3.posttrain.rollouts.agents import Agents
from megatron_qwen3.posttrain.rollouts.environments import Environments
from megatron_qwen3.posttrain.rollouts.own import OwnEngine
from megatron_qwen3.posttrain.rollouts.refit import Waiting
from megatron_qwen3.posttrain.rollouts.rollout import RolloutEngine
from megatron_qwen3.posttrain.rollouts.vllm import VllmEngine
from megatron_qwen3.settings import Config
from megatron_qwen3.settings_rollouts import AgentConfig
from megatron_qwen3.training.model import Model


@contextmanager
def open_engine(
    config: Config,
    model: Model,
    tokenizer: Any,
    beat: Callable[[], None],
    alive: Callable[[], None] = lambda: None,
    waiting: Waiting = nullcontext,
) -> Iterator[RolloutEngine]:
    """The engine of the settings, with its tools, closed at the end. beat: is called while it
    samples, on all ranks alike, and may raise to end that; alive: by each rank for itself; waiting:
    what all ranks are in while servers or tools answer, which have limits of their own.

    ConfigError where servers of vLLM do not start, or tools cannot be had.
    """
    agent = config.rollouts.agent
    with _sampling(config, model, tokenizer, beat, alive, waiting) as engine:
        if not agent.environment:
            yield engine
            return
        with _environments(agent, waiting) as found:
            limits = replace(agent, answer_tokens=config.rollouts.tool_tokens)
            yield Agents(engine, found, ChatTokenizer(tokenizer), limits, beat, waiting)


@contextmanager
def _environments(agent: AgentConfig, waiting: Waiting) -> Iterator[Environments]:
    """Where tools act on the first rank, and what they are on all; a fault there is raised on
    all."""
    with ExitStack() as opening:
        found: list[Environments] = []

        def lead() -> None:
            found.append(opening.enter_context(environments.opened(agent)))

        with waiting():
            of_first(lead)
        if not found:
            found.append(opening.enter_context(environments.opened(agent, leads=False)))
        yield found[0]


@contextmanager
def _sampling(
    config: Config,
    model: Model,
    tokenizer: Any,
    beat: Callable[[], None],
    alive: Callable[[], None],
    waiting: Waiting,
) -> Iterator[RolloutEngine]:
    rollouts, ends = config.rollouts, ends_of([tokenizer_folder(config.data.tokenizer)], tokenizer)
    budget_of, everywhere = partial(ThinkingBudget.of, tokenizer), _are_read_everywhere(config)
    if rollouts.engine == "vllm":
        signs = beat, alive, waiting, everywhere
        with VllmEngine(config, model, ends, budget_of, *signs) as engine:
            yield engine
    else:
        how = rollouts.temperature, rollouts.rows, budget_of
        yield OwnEngine(model, ends, *how, beat, alive, everywhere)


def _are_read_everywhere(config: Config) -> bool:
    """Whether all ranks read rollouts: where agents go on with them, or a reward model scores them.

    Else they are rewarded, filtered and written by the first one, and others read the record.
    """
    return bool(config.rollouts.agent.environment) or model_settings.is_asked(config)


def check_engine(config: Config) -> None:
    """ConfigError where servers could not start, or are not there, or tools cannot be had; before
    any rank starts.

    The first rank's machine has them, so it is the one that looks.
    """
    if launcher.rank() == 0:
        environments.check(config.rollouts.agent)
        if config.rollouts.engine == "vllm":
            vllm_check.check(config)
