"""The trained part of a line of JSON, and lines that are refused."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.dialogs.samples import (
    DISOBEYS,
    UNASKED,
    Choices,
    LineRefused,
    check_choices,
    decoder,
    samples_of,
)
from tests.conversations import ANY_MESSAGE, DIALOGS, TEXT, TOOLS, assistant, system, tool, user

EMPTY = "<think>\n\n</think>\n\n"
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def samples(messages: Any, choices: Choices = Choices(), **fields: Any) -> Any:  # noqa: B008
    line = json.dumps({"messages": messages, **fields}).encode()
    return samples_of(decoder(choices.kind).decode(line), choices)


def trained(sample: Any) -> list[str]:
    return [t.emitted for t in sample.turns if t.emitted is not None and not t.history]


def refused(messages: Any, choices: Choices = Choices(), **fields: Any) -> LineRefused:  # noqa: B008
    with pytest.raises(LineRefused) as error:
        samples(messages, choices, **fields)
    return error.value


THREE = [
    *(user("q1"), assistant("a1", reasoning_content="r1")),
    *(user("q2"), assistant("", reasoning_content="c2", tool_calls=[CALL]), tool("1")),
    *(assistant("a2", reasoning_content="r2"), user("q3"), assistant("a3")),
]


def test_each_query_with_an_answer_becomes_a_sample_that_trains_it_with_its_thinking() -> None:
    found = samples(THREE)
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert [trained(sample) for sample in found] == [
        ["<think>\nr1\n</think>\n\na1"],
        [f"<think>\nc2\n</think>\n\n{call}", "<think>\nr2\n</think>\n\na2"],
        [f"{EMPTY}a3"],
    ]
    assert [sample.mode for sample in found] == ["thinking", "thinking", "non-thinking"]
    last = samples(THREE, Choices(train_on="last"))
    assert [trained(sample) for sample in last] == [[f"{EMPTY}a3"]]
    assert all("<think>" not in turn.given for sample in found for turn in sample.turns)


@pytest.mark.parametrize(
    ("flag", "mode", "block", "emitted", "remark"),
    [
        ("", None, "", EMPTY, UNASKED),  # trained, as the template renders it
        (" /no_think", None, "", EMPTY, ""),  # the model has to emit it
        (" /no_think", "non-thinking", "", EMPTY, ""),
        ("", "non-thinking", EMPTY, "", ""),  # part of the prompt
        (" /think", "non-thinking", EMPTY, "", ""),  # enable_thinking=False is above all flags
    ],
)
def test_the_empty_think_block_is_trained_or_part_of_the_prompt(
    flag: str, mode: str | None, block: str, emitted: str, remark: str
) -> None:
    for chosen, fields in ((Choices(mode=mode), {}), (Choices(), {"mode": mode})):
        (sample,) = samples([user(f"q{flag}"), assistant("a")], chosen, **fields)
        assert sample.turns[-1].given == f"assistant\n{block}"
        assert sample.turns[-1].emitted == f"{emitted}a"
        assert (sample.mode, sample.remark) == ("non-thinking", remark)


def test_a_lines_own_fields_come_before_those_of_all_lines() -> None:
    messages = [user("q"), assistant("a", reasoning_content="r")]
    choices = Choices(source="web", mode="non-thinking")
    (sample,) = samples(messages, choices, weight=0.5, source="code", mode="thinking")
    assert (sample.weight, sample.source, sample.mode) == (0.5, "code", "thinking")
    (sample,) = samples([user("q"), assistant("a")], choices, id=7, extra={"x": 1})
    assert (sample.weight, sample.source, sample.mode) == (1.0, "web", "non-thinking")


def test_thinking_under_no_think_is_remarked_and_refused_where_the_mode_says_thinking() -> None:
    messages = [user("q /no_think"), assistant("a", reasoning_content="r")]
    assert samples(messages)[0].remark == DISOBEYS
    assert refused(messages, mode="thinking").kind == "wrong mode"


@pytest.mark.parametrize(
    ("messages", "kind", "detail"),
    [
        ([], "roles out of order", r"the last message \(none\) is no answer"),
        ([user("q")], "roles out of order", r"the last message \(user\) is no answer"),
        ([assistant("a")], "roles out of order", r"message 0 \(assistant\) first; valid: system"),
        ([user("q"), user("p"), assistant("a")], "roles out of order", "message 1 .* 'user'"),
        ([user("q"), assistant("a"), assistant("b")], "roles out of order", "after 'assistant'"),
        ([user("q"), system("s"), assistant("a")], "roles out of order", "message 1 .system."),
        ([user("q"), assistant("a"), tool("1"), assistant("b")], "roles out of order", "no call"),
        (
            [user("q"), assistant("", tool_calls=[CALL]), tool("1")],
            *("roles out of order", "the last message .tool. is no answer"),
        ),
        ([user("<tool_response>1</tool_response>"), assistant("a")], "no query", "tools' results"),
        ([user("q"), assistant("")], "empty answer", r"message 1 \(assistant\) has neither"),
        ([user("q"), assistant(" \n")], "empty answer", "neither text nor tool calls"),
        ([user("q"), assistant(None)], "empty answer", "neither text nor tool calls"),
        ([user("q"), assistant("<think>\nr\n</think>\n\n")], "empty answer", "neither text"),
        ([user("q"), assistant("", reasoning_content="r")], "empty answer", "neither text"),
        (
            [user("q"), {"role": "developer", "content": "x"}, assistant("a")],
            *("not renderable", "message 1 has role 'developer'"),
        ),
        ([user([{"type": "text"}]), assistant("a")], "not renderable", "content that is not text"),
        ([user("q"), assistant("a", weight=0)], "not renderable", "has 'weight'"),
        ([user("q"), assistant("<think>\nr")], "broken thinking", "unclosed, nested or not at"),
        ([user("q"), assistant("a<think>r</think>b")], "broken thinking", "unclosed, nested"),
        ([user("q"), assistant("r</think>s</think>a")], "broken thinking", "unclosed, nested"),
        (
            [user("q"), assistant("<think>r</think>a", reasoning_content="s")],
            *("broken thinking", "message 1"),
        ),
        (
            [user("q"), assistant("a", reasoning_content="<think>r")],
            *("broken thinking", "message 1"),
        ),
    ],
)
def test_lines_that_cannot_be_trained_on_are_refused(messages: Any, kind: str, detail: str) -> None:
    error = refused(messages)
    assert error.kind == kind
    with pytest.raises(LineRefused, match=detail):
        raise error


@pytest.mark.parametrize(
    "call",
    [
        {"name": "f", "arguments": "{"},
        {"name": "f", "arguments": "[1]"},
        {"name": "f", "arguments": "{} {}"},
        {"name": "f", "arguments": '{"a": NaN}'},
        {"name": "f", "arguments": {"a": "</tool_call>"}},
        {"name": "f", "arguments": '{"a": "<think>"}'},
        {"name": "f", "arguments": None},
        {"name": "f", "arguments": [1]},
        {"name": "f"},
        {"name": "", "arguments": {}},
        {"name": 'f"', "arguments": {}},
        {"name": None, "arguments": {}},
        {"function": {"arguments": {}}},
        "f()",
    ],
)
def test_tool_calls_that_are_not_json_are_refused(call: Any) -> None:
    assert refused([user("q"), assistant("", tool_calls=[call])]).kind == "broken tool call"


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\nadd(1)\n</tool_call>",
        "<tool_call>\n[]\n</tool_call>",
        '<tool_call>\n{"name": "f"}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {}}',
        "a</tool_call>",
    ],
)
def test_tool_calls_written_into_an_answer_are_checked_too(text: str) -> None:
    assert refused([user("q"), assistant(text)]).kind == "broken tool call"


def test_tool_calls_in_each_form_are_taken() -> None:
    for calls in ([CALL], [CALL["function"]], [{"name": "f", "arguments": '{"a": [1]}'}] * 2):
        messages = [user("q"), assistant("", tool_calls=calls), tool("1"), assistant("a")]
        assert len(trained(samples(messages, tools=[CALL])[0])) == 2
    text = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert samples([user("q"), assistant(text), tool("1"), assistant("a")])


@pytest.mark.parametrize(
    ("mode", "messages", "kind"),
    [
        ("thinking", [user("q"), assistant("a")], "wrong mode"),
        ("thinking", [user("q"), assistant("a", reasoning_content="\n")], "wrong mode"),
        ("non-thinking", [user("q"), assistant("a", reasoning_content="r")], "not renderable"),
        (
            "non-thinking",
            [user("q /no_think"), assistant("a", reasoning_content="r")],
            "wrong mode",
        ),
        ("fast", [user("q"), assistant("a")], "wrong mode"),
    ],
)
def test_an_answer_that_is_not_of_the_lines_mode_is_refused(
    mode: str, messages: Any, kind: str
) -> None:
    assert refused(messages, mode=mode).kind == kind


@pytest.mark.parametrize(
    "fields", [{"weight": 0}, {"weight": -1}, {"weight": 1e60}, {"source": "x" * 51}]
)
def test_fields_that_say_nothing_sensible_are_refused(fields: Any) -> None:
    assert refused([user("q"), assistant("a")], **fields).kind == "missing or wrong field"


PAIRS = Choices(kind="pairs")


def test_a_pair_is_two_conversations_the_better_first() -> None:
    dialog = [assistant("", tool_calls=[CALL]), tool("1"), assistant("b", reasoning_content="r")]
    for chosen in ("a", assistant("a"), [assistant("a")], dialog):
        found = samples([user("q")], PAIRS, chosen=chosen, rejected="c", margin=2, weight=0.5)
        last = [sample.turns[-1].emitted for sample in found]
        better = "<think>\nr\n</think>\n\nb" if chosen is dialog else f"{EMPTY}a"
        assert last == [better, f"{EMPTY}c"]
        assert [(sample.margin, sample.weight) for sample in found] == [(2, 0.5)] * 2
    assert [sample.margin for sample in samples([user("q")], PAIRS, chosen="a", rejected="b")] == [
        *(0, 0)
    ]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"chosen": "a", "rejected": "a"}, "equal answers"),
        ({"chosen": "a", "rejected": assistant("a")}, "equal answers"),
        ({"chosen": "a", "rejected": ""}, "empty answer"),
        ({"chosen": [], "rejected": "b"}, "empty answer"),
        ({"chosen": user("a"), "rejected": "b"}, "roles out of order"),
        ({"chosen": "a", "rejected": "b", "margin": 1e300}, "missing or wrong field"),
    ],
)
def test_pairs_that_say_nothing_are_refused(fields: Any, kind: str) -> None:
    assert refused([user("q")], PAIRS, **fields).kind == kind


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"kind": "texts"}, 'kind = "texts" is unknown; valid: dialogs, pairs'),
        ({"train_on": "first"}, 'train_on = "first" is unknown; valid: all, last'),
        ({"too_long": "keep"}, 'too_long = "keep" is unknown; valid: drop, cut'),
        ({"mode": "fast"}, 'mode = "fast" is unknown; valid: thinking, non-thinking'),
        ({"source": ""}, "source needs 1 to 50 characters"),
        ({"max_tokens": 1}, "max_tokens = 1: a sample has at least 2 tokens"),
        ({"too_long": "cut"}, 'too_long = "cut" needs max_tokens'),
        ({"too_long": "cut", "kind": "pairs", "max_tokens": 9}, "with pairs: the reward is read"),
    ],
)
def test_choices_that_make_no_sense_are_refused(choices: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_choices(Choices(**choices))


@settings(max_examples=150, deadline=None)
@given(
    messages=st.lists(ANY_MESSAGE, max_size=6) | DIALOGS,
    answers=st.tuples(TEXT | ANY_MESSAGE, TEXT | st.lists(ANY_MESSAGE, max_size=2)),
    tools=TOOLS,
    mode=st.sampled_from([None, "thinking", "non-thinking"]),
)
def test_a_line_is_taken_or_refused_and_what_is_taken_trains_something(
    messages: Any, answers: Any, tools: Any, mode: str | None
) -> None:
    pair = {"chosen": answers[0], "rejected": answers[1]}
    row = {"messages": messages, "tools": tools, "mode": mode, **pair}
    for choices in (Choices(), Choices(train_on="last"), PAIRS):
        try:
            line = decoder(choices.kind).decode(json.dumps(row).encode())
            found = samples_of(line, choices)
        except (LineRefused, msgspec.MsgspecError):
            continue
        assert found and all(trained(sample) for sample in found)
        assert all(sample.mode in ("thinking", "non-thinking") for sample in found)
