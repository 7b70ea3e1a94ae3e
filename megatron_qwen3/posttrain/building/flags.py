"""Builds dialogs with `/think` and `/no_think` from answered queries: `fused(samples, settings)`.

Each sample is a conversation and an answer in one mode. Its flag is in the user's text or in a
system message; some thinking samples have none, since thinking is the default. Some samples become
turns of one dialog: modes change from turn to turn, a turn in the same mode as before may have no
flag, and the last of several flags in a turn counts. Every turn is checked by `chat.soft_switch`.

The result is a function of the samples, the settings and the seed. A sample's own draws decide
whether it is joined to others and where its flag is, whatever else is in the set.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_qwen3.chat import reasoning_and_content, soft_switch, thinks
from megatron_qwen3.fields import setting
from megatron_qwen3.posttrain import options
from megatron_qwen3.posttrain.building.queries import Query
from megatron_qwen3.posttrain.generators.answers import Answer

Mode = Literal["thinking", "non-thinking"]  # names in tokenized sets
_FLAGS: dict[Mode, str] = {"thinking": "/think", "non-thinking": "/no_think"}


@dataclass(frozen=True)
class FlagSettings:
    """Places of flags, and the share of dialogs with several turns."""

    flagged_thinking: float = setting(
        0.5, "share of thinking samples with a flag", at_least=0, at_most=1
    )
    system_flags: float = setting(0.15, "share of flags in a system message", at_least=0, at_most=1)
    joined: float = setting(
        0.2, "share of samples that become turns of longer dialogs", at_least=0, at_most=1
    )
    most_turns: int = setting(4, "most queries of such a dialog", at_least=2)
    several_flags: float = setting(
        0.2,
        "share of flagged turns with other flags before the one that counts",
        at_least=0,
        at_most=1,
    )
    seed: int = setting(0, "seed of all draws", at_least=0)

    def __post_init__(self) -> None:
        options.check(self)


@dataclass(frozen=True)
class Answered:
    """A query and its `number`-th answer in a mode; `answer()` reads it from the log."""

    query: Query
    mode: Mode
    answer: Callable[[], Answer]
    number: int = 0

    @property
    def key(self) -> str:
        return f"{self.query.id}/{self.mode}/{self.number}"


def fused(samples: Sequence[Answered], settings: FlagSettings) -> Iterator[dict[str, Any]]:
    """Rows of dialogs: every sample once, in a drawn order."""
    order = sorted(samples, key=lambda sample: _draws(settings, sample.key, "order").random())
    can_join = [s for s in order if _joins(s, settings)]
    alone = [s for s in order if not _joins(s, settings)]
    for sample in alone:
        yield _dialog([sample], settings)
    while can_join:
        size = _draws(settings, can_join[0].key, "turns").randint(2, settings.most_turns)
        yield _dialog(can_join[:size], settings)
        can_join = can_join[size:]


def _joins(sample: Answered, settings: FlagSettings) -> bool:
    """Whether a sample becomes a turn among others; its query must be one user's message alone."""
    is_simple = len(sample.query.messages) == 1 and not sample.query.tools
    return is_simple and _draws(settings, sample.key, "joined").random() < settings.joined


def _dialog(samples: Sequence[Answered], settings: FlagSettings) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    modes: set[Mode] = set()
    for sample in samples:
        random_of_it = _draws(settings, sample.key, "flags")
        modes |= {sample.mode, *_add_query(messages, sample.query)}
        _flag(messages, sample.mode, random_of_it, settings)
        assert thinks(messages) == (sample.mode == "thinking"), sample.key
        messages.append(message_of(sample.answer(), sample.mode))
    last = samples[-1]
    row = {
        "id": "+".join(sample.key for sample in samples),
        "source": last.query.source,
        "domain": last.query.domain,
        "messages": messages,
    }
    if len(modes) == 1:  # else each turn has its own
        row["mode"] = last.mode
    if last.query.tools:
        row["tools"] = list(last.query.tools)
    return row


def _add_query(messages: list[dict[str, Any]], query: Query) -> Iterator[Mode]:
    """Append the query's messages; yields the modes of the answers that it contains. An answer in
    another mode than the one in force gets a flag before it, so that no turn trains an unrequested
    mode."""
    for message, after in zip(query.messages, [*query.messages[1:], None], strict=True):
        if after is not None and message["role"] == "assistant" and after["role"] == "user":
            mode: Mode = "thinking" if reasoning_and_content(message)[0].strip() else "non-thinking"
            if thinks(messages) != (mode == "thinking"):
                asked = next(m for m in reversed(messages) if m["role"] == "user")
                asked["content"] = f"{asked['content']} {_FLAGS[mode]}"
            yield mode
        messages.append(dict(message))


def message_of(answer: Answer, mode: Mode) -> dict[str, Any]:
    """The assistant's message, thinking and answer apart; no thinking is "", rendered as the empty
    think block that the model has to write."""
    thinking = answer.thinking if mode == "thinking" else ""
    return {"role": "assistant", "reasoning_content": thinking, "content": answer.content}


def _flag(
    messages: list[dict[str, Any]], mode: Mode, draws: random.Random, settings: FlagSettings
) -> None:
    """Put flags into the last user's message, or at the top into the system's, for this mode.

    The flag may be left out where the mode is already in force: by default, or by the last flag of
    an earlier turn.
    """
    flag = _FLAGS[mode]
    in_force = thinks(messages) == (mode == "thinking")
    is_flagged, in_system, several = (draws.random() for _ in range(3))
    if in_force and is_flagged >= settings.flagged_thinking:
        return
    is_first = not any(message["role"] == "assistant" for message in messages)
    if is_first and in_system < settings.system_flags:
        _flag_system(messages, flag)
        return
    user = messages[-1]
    if several < settings.several_flags:
        user["content"] = _with(user["content"], draws.choice(tuple(_FLAGS.values())), draws)
    user["content"] = f"{user['content']}{draws.choice((' ', chr(10)))}{flag}"


def _flag_system(messages: list[dict[str, Any]], flag: str) -> None:
    if messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": flag})
    else:
        messages[0]["content"] = f"{messages[0]['content']}\n{flag}".lstrip("\n")


def _with(text: str, flag: str, draws: random.Random) -> str:
    """The text with a flag, before or after it, that a later flag overrules."""
    return f"{flag} {text}" if draws.random() < 0.5 else f"{text} {flag}"


def has_flag(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a query contains a flag of its own."""
    return soft_switch(messages) is not None


def _draws(settings: FlagSettings, key: str, what: str) -> random.Random:
    return random.Random(f"{settings.seed}/{what}/{key}")
