"""Turns a JSON line of dialogs into training samples, or refuses it with a reason.

    decode = decoder("dialogs")
    for sample in samples_of(decode(line), Choices(train_on="all")): sample.turns, sample.mode

A line of kind "dialogs" has `messages` in OpenAI's form, as Qwen's template takes them, and
optionally `tools`, `weight` (above 0; default 1), `id`, `source` and `mode`. A line of kind "pairs"
has `messages` up to a query, `chosen` and `rejected` (a text, a message, or a list of messages),
and optionally `margin`. Other fields are ignored.

Qwen's template drops the thinking of earlier answers when a new query comes. So a sample trains the
answers to one query, with the tool calls on the way; train_on = "all" makes a sample for each query
that has an answer, "last" one for the last.

mode says how the answers were generated. "thinking": each last answer to a query has thinking.
"non-thinking": none has, and the empty think block is part of the prompt, as under
enable_thinking=False, except after /no_think in the text: there the model has to emit the block.
Without a mode the think block of a last answer is always trained, empty or not. No torch.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from data_prep.labels import LONGEST_LABEL, UNKNOWN
from megatron_qwen3.chat import (
    EMPTY_THINKING,
    END_THINK,
    END_TOOL_CALL,
    MARKUP,
    THINK,
    TOOL_CALL,
    Turn,
    reasoning_and_content,
    soft_switch,
    split_by_query,
    turns_to_train,
)
from megatron_qwen3.chat_check import REASONING, Message, check
from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.dialogs.dialog_set import KINDS, MODES

TRAIN_ON = ("all", "last")
TOO_LONG = ("drop", "cut")
LINE_MODES = MODES[1:]
MOST = 1e30  # weights and margins are stored as float32
# Remarks on samples that are kept: counted, because they may be a mistake in the data.
UNASKED = "empty think block trained, and nothing asks for it"
DISOBEYS = "thinking trained under /no_think"
_AFTER = {  # which roles may follow
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
_THOUGHT = re.compile(rf"\s*(?:{THINK})?(.*?){END_THINK}(.*)", re.DOTALL)
_WRITTEN_CALL = re.compile(f"{TOOL_CALL}(.*?){END_TOOL_CALL}", re.DOTALL)


class LineRefused(Exception):
    """A line that yields no sample. kind: one of a few names, under which refusals are counted."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True)
class Choices:
    """How lines become samples.

    kind: of KINDS. train_on: of TRAIN_ON. max_tokens: of a sample; too_long: whether a longer one
    is dropped or cut, of TOO_LONG. source, mode: for lines without their own.
    """

    kind: str = "dialogs"
    train_on: str = "all"
    max_tokens: int | None = None
    too_long: str = "drop"
    source: str = UNKNOWN
    mode: str | None = None


class Rendered(NamedTuple):
    """A sample before it is tokenized. mode: of MODES; remark: UNASKED, DISOBEYS or ""."""

    turns: list[Turn]
    mode: str
    weight: float
    source: str
    margin: float = 0.0
    remark: str = ""


class DialogLine(msgspec.Struct):
    """A line of kind "dialogs"."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    weight: float | None = None
    id: str | int | None = None
    source: str | None = None
    mode: str | None = None


class PairLine(DialogLine, kw_only=True):
    """A line of kind "pairs"."""

    chosen: str | dict[str, Any] | list[dict[str, Any]]
    rejected: str | dict[str, Any] | list[dict[str, Any]]
    margin: float | None = None


def decoder(kind: str) -> msgspec.json.Decoder[DialogLine]:
    """Its `decode` takes a line's bytes; msgspec.MsgspecError or UnicodeError for other content."""
    return msgspec.json.Decoder(PairLine if kind == "pairs" else DialogLine)


def check_choices(choices: Choices) -> None:
    """ConfigError where a choice is unknown, or two contradict each other."""
    for name, valid in (("kind", KINDS), ("train_on", TRAIN_ON), ("too_long", TOO_LONG)):
        if getattr(choices, name) not in valid:
            value = getattr(choices, name)
            raise ConfigError(f'{name} = "{value}" is unknown; valid: {", ".join(valid)}')
    if choices.mode not in (None, *LINE_MODES):
        raise ConfigError(f'mode = "{choices.mode}" is unknown; valid: {", ".join(LINE_MODES)}')
    if not 0 < len(choices.source) <= LONGEST_LABEL:
        raise ConfigError(f"source needs 1 to {LONGEST_LABEL} characters")
    if choices.max_tokens is not None and choices.max_tokens < 2:
        raise ConfigError(f"max_tokens = {choices.max_tokens}: a sample has at least 2 tokens")
    if choices.too_long == "cut" and choices.kind == "pairs":
        raise ConfigError(
            'too_long = "cut" with pairs: the reward is read from the end of an answer; '
            'valid: "drop"'
        )
    if choices.too_long == "cut" and choices.max_tokens is None:
        raise ConfigError('too_long = "cut" needs max_tokens, at which samples are cut')


def samples_of(line: DialogLine, choices: Choices) -> list[Rendered]:
    """Samples of a line, a pair's chosen answer first. LineRefused says why there are none."""
    try:
        if isinstance(line, PairLine):
            return _pair(line, choices)
        _check_messages(line.messages, line)
        parts = split_by_query(line.messages)
        if not parts:
            raise LineRefused("no query", "no user message but tools' results: nothing is answered")
        chosen = parts if choices.train_on == "all" else parts[-1:]
        return [_rendered(part, line, choices) for part in chosen]
    except (ValueError, RecursionError) as error:  # ChatError, numbers and depths beyond JSON
        raise LineRefused("not renderable", str(error) or type(error).__name__) from None


def _pair(line: PairLine, choices: Choices) -> list[Rendered]:
    both = [_answer(line.chosen, "chosen"), _answer(line.rejected, "rejected")]
    if both[0] == both[1]:
        raise LineRefused("equal answers", "chosen and rejected are the same")
    margin = 0.0 if line.margin is None else line.margin
    if not abs(margin) <= MOST:
        raise LineRefused("missing or wrong field", f"margin = {margin}")
    samples = []
    for answer in both:
        messages = [*line.messages, *answer]
        _check_messages(messages, line)
        if not split_by_query(messages):
            raise LineRefused("no query", "no user message but tools' results: nothing is answered")
        samples.append(
            _rendered(messages, line, choices)._replace(margin=margin, mode=MODES[0], remark="")
        )
    return samples


def _answer(value: str | dict[str, Any] | list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    messages = value if isinstance(value, list) else [value]
    if not messages:
        raise LineRefused("empty answer", f"{name} has no message")
    return messages


def _rendered(messages: Sequence[Message], line: DialogLine, choices: Choices) -> Rendered:
    mode, asked = line.mode or choices.mode, soft_switch(messages)
    if mode not in (None, *LINE_MODES):
        raise LineRefused("wrong mode", f"mode {mode!r:.80}; valid: {', '.join(LINE_MODES)}")
    turns = turns_to_train(messages, line.tools, mode != "non-thinking" or asked is False)
    found = _mode_of(turns[-1])
    _check_mode(mode, found, asked, turns)
    remark = ""
    if found == "thinking" and asked is False:
        remark = DISOBEYS
    elif mode is None and asked is not False and found == "non-thinking":
        remark = UNASKED
    weight, source = _weight(line.weight), line.source or choices.source
    if len(source) > LONGEST_LABEL:
        raise LineRefused("missing or wrong field", f"source has over {LONGEST_LABEL} characters")
    return Rendered(turns, found, weight, source, remark=remark)


def _mode_of(turn: Turn) -> str:
    """The mode, of MODES, that an answer's think block shows."""
    emitted = turn.emitted or ""
    if emitted.startswith(THINK):
        block = emitted[len(THINK) : emitted.index(END_THINK)]
        return "thinking" if block.strip() else "non-thinking"
    return "non-thinking" if turn.given.endswith(EMPTY_THINKING) else "none"


def _check_mode(mode: str | None, found: str, asked: bool | None, turns: Sequence[Turn]) -> None:
    if mode == "thinking" and found != mode:
        raise LineRefused(
            "wrong mode", f"mode thinking, but an answer has none: {_shown(turns[-1])}"
        )
    if mode == "thinking" and asked is False:
        raise LineRefused("wrong mode", "mode thinking, but the last flag is /no_think")
    for turn in turns if mode == "non-thinking" else ():
        if turn.emitted and not turn.history and _mode_of(turn) == "thinking":
            raise LineRefused("wrong mode", f"mode non-thinking, but one thinks: {_shown(turn)}")


def _weight(weight: float | None) -> float:
    if weight is None:
        return 1.0
    if not 1 / MOST <= weight <= MOST:
        raise LineRefused("missing or wrong field", f"weight = {weight}; valid: numbers above 0")
    return weight


def _check_messages(messages: Sequence[Message], line: DialogLine) -> None:
    """LineRefused where roles are out of order or an answer is empty; ChatError of `check`."""
    check(messages, line.tools)
    before, called = "", False
    for k, message in enumerate(messages):
        role = message["role"]
        if role not in _AFTER[before]:
            place = f"after {before!r}" if before else "first"
            valid = ", ".join(_AFTER[before])
            raise LineRefused("roles out of order", f"message {k} ({role}) {place}; valid: {valid}")
        if role == "tool" and not called:
            raise LineRefused("roles out of order", f"message {k} (tool) answers no call")
        before = role
        if role == "assistant":
            called = _check_answer(k, message)
    if before != "assistant":
        raise LineRefused(
            "roles out of order", f"the last message ({before or 'none'}) is no answer"
        )


def _check_answer(k: int, message: Message) -> bool:
    """Whether the message calls tools. LineRefused where it is empty or its parts conflict."""
    _check_thinking(k, message, message.get("content") or "")
    _, answer = reasoning_and_content(message)
    calls = message.get("tool_calls")
    if not calls and not answer.strip():
        raise LineRefused(
            "empty answer", f"message {k} (assistant) has neither text nor tool calls"
        )
    for call in calls or ():
        _check_call(k, call)
    if TOOL_CALL not in answer and END_TOOL_CALL not in answer:
        return bool(calls)
    for written in _WRITTEN_CALL.findall(answer):
        _check_call(k, _object(k, written))
    rest = _WRITTEN_CALL.sub("", answer)
    if TOOL_CALL in rest or END_TOOL_CALL in rest:
        raise LineRefused(
            "broken tool call", f"message {k} (assistant) has a {TOOL_CALL} tag alone"
        )
    return True


def _check_thinking(k: int, message: Message, content: str) -> None:
    """Allow one closed think block at the beginning: rendering would drop or nest any other."""
    named = [message[name] for name in REASONING if message.get(name) is not None]
    texts = [*named, content]
    if not named and END_THINK in content and (thought := _THOUGHT.fullmatch(content)):
        texts = list(thought.groups())
    if any(tag in text for tag in (THINK, END_THINK) for text in texts):
        raise LineRefused(
            "broken thinking",
            f"message {k} (assistant) has a {THINK} tag that is unclosed, nested or not at the "
            "beginning",
        )


def _check_call(k: int, call: Any) -> None:
    call = (isinstance(call, Mapping) and call.get("function")) or call
    if not isinstance(call, Mapping) or "arguments" not in call:
        raise LineRefused(
            "broken tool call", f"message {k}: {call!r:.80} needs a name and arguments"
        )
    name, arguments = call.get("name"), call["arguments"]
    if not isinstance(name, str) or not name or json.dumps(name, ensure_ascii=False)[1:-1] != name:
        raise LineRefused(
            "broken tool call", f"message {k} calls {name!r:.80}, which is no plain name"
        )
    if isinstance(arguments, str):
        text, arguments = arguments, _object(k, arguments)
    else:
        text = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, Mapping):
        raise LineRefused(
            "broken tool call", f"message {k} has arguments that are no object of JSON"
        )
    if tags := [tag for tag in MARKUP if tag in text or tag in name]:
        raise LineRefused(
            "broken tool call", f"message {k} has {tags[0]} within a call, as a token"
        )


def _object(k: int, text: str) -> Any:
    try:
        found = json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        detail = f"message {k} has a tool call that is not JSON ({error}): {text!r:.80}"
        raise LineRefused("broken tool call", detail) from None
    if not isinstance(found, dict):
        raise LineRefused("broken tool call", f"message {k}: {text!r:.80} is no object of JSON")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _shown(turn: Turn) -> str:
    return f"{turn.emitted!r:.60}"
