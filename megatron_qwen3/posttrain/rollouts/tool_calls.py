"""Parses tool calls in a model's text, and encodes tools' answers as the chat template does.

calls_of('<tool_call>\\n{"name": "python", "arguments": {"code": "…"}}\\n</tool_call>')
answers_ids(chat, ["42"], header_of(chat, prompt))     # ids up to the model's next turn
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_qwen3.chat import (
    END_TOOL_CALL,
    TOOL_CALL,
    ChatTokenizer,
    split_thinking,
    turns_of,
)

_MOST_CALLS = 32  # per turn: each of them may take long
_CALL = re.compile(f"{TOOL_CALL}(.*?)(?:{END_TOOL_CALL}|(?={TOOL_CALL})|$)", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """One call. fault: why it is invalid, which the model gets as the answer."""

    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""


def calls_of(text: str) -> list[ToolCall]:
    """The calls after the thinking, in order; calls within the thinking do not count. Calls beyond
    the limit are replaced by one fault."""
    _, answer = split_thinking(text)
    calls = [_call(match) for match in _CALL.finditer(answer)]
    more = len(calls) - _MOST_CALLS
    if more <= 0:
        return calls
    fault = f"an answer may have {_MOST_CALLS} calls; {more:,} more were not made"
    return [*calls[:_MOST_CALLS], ToolCall(fault=fault)]


def header_of(chat: ChatTokenizer, prompt: Sequence[int]) -> list[int]:
    """Ids with which the model's turn begins in a prompt, with or without an empty think block."""
    start = len(prompt) - 1 - list(reversed(prompt)).index(chat.turn_start)
    return list(prompt[start:])


def answers_ids(chat: ChatTokenizer, texts: Sequence[str], header: Sequence[int]) -> list[int]:
    """Ids of tools' answers, after the `<|im_end|>` of the turn that called them, up to and with
    the header of the model's next turn."""
    messages = [{"role": "tool", "content": text} for text in texts]
    ids = list(chat.after_turn)
    for turn in turns_of(messages, None, True):
        ids += chat.encode_turn(turn)[0]
    return [*ids, *header]


def _call(match: re.Match[str]) -> ToolCall:
    if not match.group().endswith(END_TOOL_CALL):
        return ToolCall(fault=f"{TOOL_CALL} is not closed by {END_TOOL_CALL}")
    try:
        call = json.loads(match[1])
        name, arguments = call["name"], call.get("arguments", {})
        if isinstance(arguments, str):  # as OpenAI's clients send them
            arguments = json.loads(arguments)
    except (ValueError, RecursionError) as error:
        return ToolCall(fault=f"the call is no JSON: {error}"[:300])
    except (TypeError, KeyError, AttributeError):
        return ToolCall(fault='a call is {"name": …, "arguments": {…}}')
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return ToolCall(fault="name is a text and arguments is an object")
    return ToolCall(name, arguments)
