"""Parses an endpoint's JSON replies to answers: `answers_of(reply)`, `models_of(reply)`.

Malformed says how a reply breaks the protocol; a retry may get a better one. Nothing here imports
torch.
"""

import json
from collections.abc import Mapping
from typing import Any

from megatron_qwen3.chat import END_TOOL_CALL, TOOL_CALL
from megatron_qwen3.posttrain.generators.answers import Answer, written

_STOPS = ("stop", "eos", "eos_token", "stop_sequence", "end_turn", "tool_calls", "function_call")
_LIMITS = ("length", "max_tokens")
_REASONING = ("reasoning_content", "reasoning")


class Malformed(Exception):
    """A reply that breaks the protocol."""


class RequestRefused(Exception):
    """The endpoint rejects the request; sending it again would not help."""


class ShutOut(RequestRefused):
    """The endpoint rejects every request: the key, address or model is wrong."""


class LockedOut(ShutOut):
    """The endpoint rejects the key, or needs one."""


def answers_of(reply: Any) -> list[Answer]:
    """The answers of a chat completion, at least one."""
    choices = _field(reply, "choices")
    if not isinstance(choices, list) or not choices:
        raise Malformed(f"the reply has no choices: {_short(reply)}")
    return [_answer(choice) for choice in choices]


def models_of(reply: Any) -> list[str]:
    """Names of the models that the endpoint serves."""
    rows = _field(reply, "data")
    if not isinstance(rows, list):
        raise Malformed(f"the reply has no list of models: {_short(reply)}")
    return [
        _clean(row["id"])
        for row in rows
        if isinstance(row, Mapping) and isinstance(row.get("id"), str)
    ]


def parsed(body: bytes) -> Any:
    """The body's JSON. Malformed where it is HTML, cut short or nested too deeply."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        start = body[:80].decode("utf-8", "replace")
        raise Malformed(f"the reply is no JSON ({type(error).__name__}): {start!r}") from None


def _answer(choice: Any) -> Answer:
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        raise Malformed(f"a choice has no message: {_short(choice)}")
    content = _text(message.get("content"))
    thinking = next((t for name in _REASONING if (t := _text(message.get(name)))), "")
    calls = _calls(message.get("tool_calls"))
    if content is None and not thinking and not calls:
        raise Malformed("the reply's content is null")
    finish = choice.get("finish_reason")
    is_cut = finish in _LIMITS
    if finish not in _STOPS and not is_cut:
        raise Malformed(f"finish_reason is {_short(finish)}")
    answer = "\n".join(part for part in (content or "", *calls) if part)
    text = written(thinking, answer, not is_cut)
    return Answer(text, "length" if is_cut else "stop")


def _text(value: Any) -> str | None:
    """Text, or the text of its parts; None where there is none."""
    if isinstance(value, list):
        parts = [part.get("text") for part in value if isinstance(part, Mapping)]
        value = "".join(part for part in parts if isinstance(part, str)) if parts else None
    if value is not None and not isinstance(value, str):
        raise Malformed(f"the reply's content is no text: {_short(value)}")
    return None if value is None else _clean(value)


def _calls(value: Any) -> list[str]:
    """Calls of tools, as Qwen3 writes them."""
    return [_call(call) for call in value] if isinstance(value, list) else []


def _call(call: Any) -> str:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Malformed(f"a tool call has no name: {_short(call)}")
    arguments = function.get("arguments")
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        raise Malformed(f"a tool call's arguments are no JSON: {_short(arguments)}") from None
    written_out = {"name": _clean(function["name"]), "arguments": arguments}
    return f"{TOOL_CALL}\n{_clean(json.dumps(written_out, ensure_ascii=False))}\n{END_TOOL_CALL}"


def _field(reply: Any, name: str) -> Any:
    if not isinstance(reply, Mapping):
        raise Malformed(f"the reply is no table: {_short(reply)}")
    if name not in reply and reply.get("error"):
        raise Malformed(f"the endpoint says: {error_text(reply)}")
    return reply.get(name)


def error_text(reply: Any) -> str:
    """The endpoint's error message, shortened."""
    error = reply.get("error", reply.get("message", reply)) if isinstance(reply, Mapping) else reply
    if isinstance(error, Mapping) and isinstance(error.get("message"), str):
        error = error["message"]
    return _clean(error)[:500] if isinstance(error, str) else _short(error)


def _clean(text: str) -> str:
    """Drop half surrogate pairs, which JSON can hold but no file can."""
    return text.encode("utf-8", "replace").decode()


def _short(value: Any) -> str:
    return _clean(repr(value)[:120])
