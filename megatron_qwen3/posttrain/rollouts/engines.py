"""Opens the engine of a run's rollouts: `with open_engine(config, model, tokenizer, beat)`.

rollouts.engine chooses it, rollouts.agent adds tools; all ranks open and call it alike.
"""

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
    """The engine of the settings, with its tools; closed at the end. beat: called on all ranks
    alike while it samples, and may raise to end that; alive: called by each rank for itself;
    waiting: a context that all ranks hold while servers or tools run, which have time limits of
    their own.

    ConfigError where servers of vLLM do not start, or tools are not available.
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
    """The agent's environments, in which tools run on the first rank; the other ranks know only
    the tools. A fault on the first rank is raised on all."""
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
    """Whether all ranks need rollouts: where agents continue them, or a reward model scores them.

    Else the first rank rewards, filters and writes them, and the others read the record.
    """
    return bool(config.rollouts.agent.environment) or model_settings.is_asked(config)


def check_engine(config: Config) -> None:
    """ConfigError, before any rank starts, where servers could not start or do not answer, or tools
    are not available.

    Servers and tools belong to the first rank's machine, so the first rank checks.
    """
    if launcher.rank() == 0:
        environments.check(config.rollouts.agent)
        if config.rollouts.engine == "vllm":
            vllm_check.check(config)
