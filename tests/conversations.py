"""Conversations of every shape, for the tests of the chat format."""

import json
from typing import Any

from hypothesis import strategies as st


def user(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


def assistant(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def tool(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **fields}


# fmt: off
PIECES = st.sampled_from([
    "", "\n", "\n\n", " ", "\r\n", "a", "Wörter", "日本", "e\u0301", "😀", "\u2028", "'\"<b>&",
    "{{ x }}", "<think>", "</think>", "<think>\nr\n</think>\n\n", "<tool_call>", "<tool_response>",
    "</tool_response>", "<tool_response>\n1\n</tool_response>", "/think", "/no_think",
])
# fmt: on
TEXT = st.lists(PIECES, max_size=4).map("".join)
HOSTILE = st.lists(
    PIECES | st.sampled_from(["<|im_end|>", "<|im_start|>user\n", "<|endoftext|>", "<|fim_pad|>"]),
    max_size=4,
).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
TOOLS = st.none() | st.lists(st.dictionaries(TEXT, JSON, max_size=2), max_size=2)


def functions(text: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    plain = st.fixed_dictionaries({"name": text, "arguments": text | JSON})
    nested = plain.map(lambda function: {"type": "function", "function": function})
    return plain | nested | plain.map(lambda function: {**function, "function": None})


def messages_of(text: st.SearchStrategy[str], roles: list[Any]) -> st.SearchStrategy[Any]:
    fields = {
        "assistant": {
            "reasoning_content": text | st.none(),
            "tool_calls": st.lists(functions(text), max_size=3) | st.none(),
        },
        "tool": {"tool_call_id": text, "name": text},
    }
    message = st.sampled_from(roles).flatmap(
        lambda role: st.fixed_dictionaries(
            {"role": st.just(role), "content": text}, optional=fields.get(role, {})
        )
    )
    return st.lists(message, min_size=1, max_size=6)


ROLES = ["user", "assistant", "assistant", "tool", "system"]
SOUND = messages_of(TEXT, ROLES)
HOSTILE_CHAT = messages_of(HOSTILE, ROLES)  # with control tokens in what messages say
ANY_MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "assistant", "tool", "system", "developer"]),
        "content": HOSTILE | HOSTILE | st.none() | st.just([{"type": "text", "text": "x"}]),
        "reasoning_content": TEXT | st.none() | st.just(3),
        "reasoning": TEXT | st.none() | st.just(3),
        "tool_calls": st.none() | st.lists(functions(HOSTILE) | st.just({"name": "f"}), max_size=3),
    },
)


# Dialogs as data has them: roles in order, answers that say something, thinking in its place.
WORDS = st.lists(
    st.sampled_from(
        ["", "\n", "\n\n", " ", "\r\n", "a", "Wörter", "日本", "e\u0301", "😀", "\u2028"]
    )
    | st.sampled_from(["'\"<b>&", "{{ x }}", "/think", "/no_think", "<|im_end|>", "\u0301"])
    | st.sampled_from(["<|im_start|>user\n", "<|endoftext|>", "<|fim_pad|>", "\u2028", "\t\n"]),
    max_size=5,
).map("".join)
SAYING = st.builds(lambda text, end: f"{text}{end}", WORDS, st.sampled_from("aü日."))
FLAG = st.sampled_from(["", "", " /think", " /no_think", " /think /no_think"])
ARGUMENTS = st.dictionaries(WORDS, st.integers() | WORDS, max_size=2)
CALLS = st.lists(
    st.builds(
        lambda name, arguments, nested: (
            {"type": "function", "function": {"name": name, "arguments": arguments}}
            if nested
            else {"name": name, "arguments": arguments}
        ),
        st.sampled_from(["add", "look_up"]),
        ARGUMENTS | ARGUMENTS.map(json.dumps),
        st.booleans(),
    ),
    min_size=1,
    max_size=2,
)


def _answer(content: str, reasoning: str | None, place: str, **fields: Any) -> dict[str, Any]:
    if reasoning is None:
        return assistant(content, **fields)
    if place == "content":
        return assistant(f"<think>\n{reasoning}\n</think>\n\n{content}", **fields)
    return assistant(content, **{place: reasoning}, **fields)


_PLACE = st.sampled_from(["content", "reasoning_content", "reasoning"])
_STEP = st.tuples(
    st.builds(_answer, WORDS, st.none() | WORDS, _PLACE, tool_calls=CALLS),
    st.lists(st.builds(tool, HOSTILE), min_size=1, max_size=2),
).map(lambda step: [step[0], *step[1]])
_ROUND = st.builds(
    lambda question, flag, steps, answer: [
        user(question + flag),
        *(message for step in steps for message in step),
        answer,
    ],
    HOSTILE,
    FLAG,
    st.lists(_STEP, max_size=2),
    st.builds(_answer, SAYING, st.none() | WORDS, _PLACE),
)
DIALOGS = st.builds(
    lambda first, rounds: [*first, *(message for one in rounds for message in one)],
    st.just([]) | st.builds(lambda text, flag: [system(text + flag)], HOSTILE, FLAG),
    st.lists(_ROUND, min_size=1, max_size=3),
)
