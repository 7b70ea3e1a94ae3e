"""Encodes the prompts of a run's tasks, and checks that rows have room for prompts and answers.

    encode = encoder(config, tokenizer)
    check_room(config, sources, encode)        # before anything is sampled

A task whose prompt and rollouts.max_new_tokens exceed data.sequence_length is passed over during
the run. Where that holds for all tasks of a source, the settings are wrong. No torch here.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from megatron_qwen3.chat import ChatTokenizer
from megatron_qwen3.posttrain.rollouts.asking import Encode, SplitTasks, ask_of, has_room, modes_of
from megatron_qwen3.posttrain.rollouts.environments import tools_of
from megatron_qwen3.settings import Config, ConfigError

_LOOKED_AT = 1000  # tasks of a source that are tried before giving up


def encoder(config: Config, tokenizer: Any) -> Encode:
    """A function to encode prompts, with the tools of the run's environment and of the task."""
    chat, own = ChatTokenizer(tokenizer), tools_of(config.rollouts.agent)

    def encode(
        messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], enable_thinking: bool
    ) -> list[int]:
        offered = [*own, *tools]
        return chat.encode_prompt(messages, offered or None, enable_thinking=enable_thinking)

    return encode


def check_room(config: Config, sources: Sequence[SplitTasks], encode: Encode) -> None:
    """ConfigError, with the way out, where none of a source's tasks has room in a row."""
    for source in sources:
        thinking, lengths = modes_of(config, source.settings)[0], []
        most = min(_LOOKED_AT, len(source.trained) or _LOOKED_AT)
        for _, task, _ in islice(source.trained_from(0, config.run.seed), most):
            ask = ask_of(config, task, thinking, 0, encode)
            if has_room(config, ask):
                break
            lengths.append(len(ask.prompt))
        else:
            raise ConfigError(_told(config, source.name, lengths))


def _told(config: Config, name: str, lengths: Sequence[int]) -> str:
    tasks, shortest = len(lengths), min(lengths)
    length, answer = config.data.sequence_length, config.rollouts.max_new_tokens
    unit = config.parallel.tensor if config.parallel.sequence else 1
    least = -(-(shortest + answer - 1) // unit) * unit
    with_tools = " with the tools of rollouts.agent" if config.rollouts.agent.environment else ""
    lower = f", or lower rollouts.max_new_tokens to at most {length + 1 - shortest}"
    return (
        f"rollouts.tasks: none of {tasks:,} tasks of {name!r} has room in a row: the shortest "
        f"prompt has {shortest:,} tokens{with_tools}, and with rollouts.max_new_tokens = {answer} "
        f"that is more than data.sequence_length = {length}; raise it to at least {least}"
        f"{lower if shortest <= length else ''}"
    )
