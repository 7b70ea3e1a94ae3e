"""Checks messages: everything that a rendered text would leave out in silence is an error here.

    check(messages, tools)      # ChatError names the message and the field

A template leaves out roles, fields and contents that it does not know; a model would then be
trained on half of a conversation. `chat.py` renders, and calls `check` first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]

_FIELDS = {
    "system": {"role", "content"},
    "user": {"role", "content"},
    "assistant": {"role", "content", "reasoning_content", "reasoning", "tool_calls"},
    "tool": {"role", "content", "tool_call_id", "name"},
}
_PLAIN = {"role", "content"}
ROLES = tuple(_FIELDS)
REASONING = ("reasoning_content", "reasoning")


class ChatError(ValueError):
    """A conversation that cannot be rendered or trained on; the text says which message."""


def check(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> None:
    """Raise ChatError for anything that rendering would leave out, or fail on."""
    if tools and not (_is_list(tools) and all(isinstance(tool, Mapping) for tool in tools)):
        raise ChatError(f"tools are not a list of tables: {tools!r:.80}")
    for k, message in enumerate(messages):
        if _is_plain(message):
            continue
        if not isinstance(message, Mapping):
            raise ChatError(f"message {k} is not a table with role and content: {message!r:.80}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ChatError(f"message {k} has role {role!r}; valid: {', '.join(ROLES)}")
        if not isinstance(content, str) and (content is not None or role in ("system", "user")):
            raise ChatError(f"message {k} ({role}) has content that is not text: {content!r:.80}")
        for name, value in message.items():
            if name not in _FIELDS[role] and value not in (None, [], {}):
                raise ChatError(
                    f"message {k} ({role}) has {name!r:.80}, which the text would be without; "
                    f"valid: {', '.join(sorted(_FIELDS[role]))}"
                )
        reasoning = [message[name] for name in REASONING if message.get(name) is not None]
        for name in REASONING:
            if not isinstance(message.get(name), str | None):
                raise ChatError(f"message {k} ({role}) has {name} that is not text")
        if len(set(reasoning)) > 1:
            raise ChatError(
                f"message {k} ({role}) has reasoning_content and reasoning, which are not equal"
            )
        if (calls := message.get("tool_calls")) and not _is_list(calls):
            raise ChatError(f"message {k} ({role}) has tool_calls that are no list: {calls!r:.80}")


def _is_plain(message: Any) -> bool:
    """Whether it is a message of the usual form, which needs no further checks; this is fast."""
    return (
        type(message) is dict
        and message.keys() == _PLAIN
        and message["role"] in ROLES
        and type(message["content"]) is str
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
