"""Conversations are rendered as Qwen3's template does, in Python and in Jinja."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_prep.tokenizer import train
from megatron_qwen3.chat import (
    ChatError,
    render,
    soft_switch,
    split_by_query,
    split_thinking,
    thinks,
)
from megatron_qwen3.chat_template import FILE, write_chat_template
from tests import golden
from tests.conversations import ANY_MESSAGE, SOUND, TEXT, TOOLS, assistant, system, tool, user

TOOL = {"type": "function", "function": {"name": "add", "description": "a <b>é</b> 'x'"}}
CALL = {"name": "add", "arguments": {"b": 2, "a": "<é>"}}
CALL_TEXT = '<tool_call>\n{"name": "add", "arguments": {"b": 2, "a": "<é>"}}\n</tool_call>'
TOOLS_TEXT = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"type": "function", "function": {"name": "add", "description": "a <b>é</b> \'x\'"}}\n'
    "</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


def turns(*bodies: str) -> str:
    return "".join(f"<|im_start|>{body}<|im_end|>\n" for body in bodies)


EMPTY = "<think>\n\n</think>\n\n"
# fmt: off
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "the_last_answer_has_a_block_even_without_thinking": (
        [user("q"), assistant("a")], {}, turns("user\nq", f"assistant\n{EMPTY}a")),
    "without_a_query_all_is_history": (
        [system("s"), assistant("a", reasoning_content="r")], {},
        turns("system\ns", "assistant\na")),
    "thinking_in_the_content_of_history_is_dropped": (
        [user("q"), assistant("<think>\nr\n</think>\n\n\na\n"), user("p")], {},
        turns("user\nq", "assistant\na\n", "user\np")),
    "a_given_empty_reasoning_leaves_the_content_whole": (
        [user("q"), assistant("r</think>a", reasoning_content="")], {},
        turns("user\nq", f"assistant\n{EMPTY}r</think>a")),
    "reasoning_may_have_its_newer_name": (
        [user("q"), assistant("a", reasoning="r")], {},
        turns("user\nq", "assistant\n<think>\nr\n</think>\n\na")),
    "reasoning_content_comes_before_reasoning": (
        [user("q"), assistant("a", reasoning_content="r", reasoning="s")], {},
        turns("user\nq", "assistant\n<think>\nr\n</think>\n\na")),
    "reasoning_that_is_no_text_is_not_given": (
        [user("q"), assistant("r</think>a", reasoning_content=["x"])], {},
        turns("user\nq", "assistant\n<think>\nr\n</think>\n\na")),
    "of_several_tags_the_first_and_the_last_count": (
        [user("q"), assistant("x<think>r<think>\n s \n\n</think>lost</think>\n\na")], {},
        turns("user\nq", "assistant\n<think>\n s \n</think>\n\na")),
    "only_newlines_are_stripped": (
        [user("q"), assistant("\n a", reasoning_content="\n\t r \n\n")], {},
        turns("user\nq", "assistant\n<think>\n\t r \n</think>\n\n a")),
    "between_two_answers_only_one_that_thinks_has_a_block": (
        [user("q"), assistant("\na"), assistant("b", reasoning_content="\n"), assistant("c")], {},
        turns("user\nq", "assistant\n\na", f"assistant\n{EMPTY}b", f"assistant\n{EMPTY}c")),
    "a_users_tool_response_is_no_query": (
        [user("q"), assistant("a", reasoning_content="r"),
         user("<tool_response>\n1\n</tool_response>"), assistant("b")], {},
        turns("user\nq", "assistant\n<think>\nr\n</think>\n\na",
              "user\n<tool_response>\n1\n</tool_response>", f"assistant\n{EMPTY}b")),
    "a_tool_response_with_a_word_more_is_a_query": (
        [user("q"), assistant("a", reasoning_content="r"),
         user("<tool_response>1</tool_response>?")], {},
        turns("user\nq", "assistant\na", "user\n<tool_response>1</tool_response>?")),
    "a_user_without_text_is_no_query": (
        [user("q"), assistant("a", reasoning_content="r"), user(None)], {},
        turns("user\nq", "assistant\n<think>\nr\n</think>\n\na", "user\n")),
    "tools_make_a_system_turn": (
        [user("q")], {"tools": [TOOL]}, turns(f"system\n{TOOLS_TEXT}", "user\nq")),
    "tools_follow_the_systems_text_and_a_later_system_stays_a_turn": (
        [system(""), system("s")], {"tools": [TOOL]},
        turns(f"system\n\n\n{TOOLS_TEXT}", "system\ns")),
    "no_tools_are_as_none": ([user("q")], {"tools": []}, turns("user\nq")),
    "calls_are_joined_by_newlines_and_arguments_may_be_text": (
        [user("q"), assistant("a", tool_calls=[
            CALL, {"type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}])], {},
        turns("user\nq", f"assistant\n{EMPTY}a\n{CALL_TEXT}\n"
              '<tool_call>\n{"name": "f", "arguments": {"x":1}}\n</tool_call>')),
    "a_call_without_text_follows_the_block_at_once": (
        [user("q"), assistant(None, tool_calls=[CALL])], {},
        turns("user\nq", f"assistant\n{EMPTY}{CALL_TEXT}")),
    "content_of_newlines_alone_counts_as_text_before_a_call": (
        [user("q"), assistant("\n", tool_calls=[CALL])], {},
        turns("user\nq", f"assistant\n{EMPTY}\n{CALL_TEXT}")),
    "results_share_a_turn_until_another_role_comes": (
        [tool("1"), tool(None), user("q"), tool("3")], {},
        turns("user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n\n</tool_response>",
              "user\nq", "user\n<tool_response>\n3\n</tool_response>")),
    "other_roles_are_left_out_and_part_results": (
        [tool("1"), {"role": "developer", "content": "d"}, tool("2")], {},
        turns("user\n<tool_response>\n1\n</tool_response>",
              "user\n<tool_response>\n2\n</tool_response>")),
    "the_prompt_of_a_model_that_may_think_is_a_header": (
        [user("q")], {"add_generation_prompt": True},
        turns("user\nq") + "<|im_start|>assistant\n"),
    "the_prompt_of_a_model_that_must_not_think_has_an_empty_block": (
        [user("q")], {"add_generation_prompt": True, "enable_thinking": False},
        turns("user\nq") + f"<|im_start|>assistant\n{EMPTY}"),
}
# fmt: on


def render_jinja(messages: Any, tools: Any = None, **options: Any) -> str:
    """Our template in the environment that transformers gives to templates."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = FILE.read_text(encoding="utf-8")
    options.setdefault("add_generation_prompt", False)
    rendered, _ = render_jinja_template(
        conversations=[messages], tools=tools, chat_template=template, **options
    )
    return str(rendered[0])


@pytest.mark.parametrize("name", CASES)
def test_renders(name: str) -> None:
    messages, options, expected = CASES[name]
    assert render(messages, **options) == expected
    assert render_jinja(messages, **options) == expected


def test_renders_what_the_published_template_does() -> None:
    if (published := golden.read("chat_template.json")) is None:
        pytest.skip(f"chat_template.json is not in {golden.folder()}")
    for name, case in published["cases"].items():
        options = dict(case["kwargs"])
        options["add_generation_prompt"] = options.pop("agp", False)
        assert render(case["messages"], **options) == case["rendered"], name
        assert render_jinja(case["messages"], **options) == case["rendered"], name


@settings(max_examples=800, deadline=None)
@given(
    messages=SOUND | st.lists(ANY_MESSAGE, max_size=7),
    tools=TOOLS,
    options=st.fixed_dictionaries(
        {"add_generation_prompt": st.booleans()},
        optional={"enable_thinking": st.sampled_from([True, False, None])},
    ),
)
def test_python_and_jinja_render_the_same_and_refuse_the_same(
    messages: Any, tools: Any, options: Any
) -> None:
    import jinja2

    try:
        expected = render_jinja(messages, tools, **options)
    except (jinja2.UndefinedError, TypeError):
        with pytest.raises(ChatError):
            render(messages, tools, **options)
    else:
        assert render(messages, tools, **options) == expected


def test_thinking_and_answer_come_apart() -> None:
    assert split_thinking("<think>\nr\n</think>\n\na\n") == ("r", "a\n")
    assert split_thinking("r</think>a") == ("r", "a")
    assert split_thinking(EMPTY + "a") == ("", "a")
    assert split_thinking("a") == ("", "a")
    assert split_thinking("\n<think>\ncut off") == ("cut off", "")
    assert split_thinking("<think>r</think>s</think>a") == ("r</think>s", "a")
    assert split_thinking("about </thinking> and <think>") == ("", "about </thinking> and <think>")


@given(thinking=TEXT, answer=TEXT)
def test_an_answer_taken_apart_renders_to_what_was_generated(thinking: str, answer: str) -> None:
    assume("think>" not in thinking + answer)
    thinking, answer = thinking.strip("\n"), answer.lstrip("\n")
    generated = f"<think>\n{thinking}\n</think>\n\n{answer}"
    assert split_thinking(generated) == (thinking, answer)
    rendered = render([user("q"), assistant(answer, reasoning_content=thinking)])
    assert rendered == turns("user\nq", f"assistant\n{generated}")


@pytest.mark.parametrize(
    ("messages", "asked"),
    [
        ([user("hi")], None),
        ([user("hi /no_think")], False),
        ([user("你好/no_think")], False),
        ([user("/think, please")], True),
        ([user("/no_think or /think?")], True),
        ([system("/no_think"), user("hi")], False),
        ([system("/no_think"), user("q /think"), assistant("/no_think"), user("p")], True),
        ([user("/think"), tool("/no_think")], True),
        ([user("/think"), user("<tool_response>/no_think</tool_response>")], True),
        ([user("</think> docs/think ~/think/x https://a.b/think /thinking /no_thinking")], None),
        ([user("/no_think"), user(None), {"role": "user"}], False),
    ],
)
def test_the_last_flag_of_a_person_says_whether_to_think(messages: Any, asked: bool | None) -> None:
    assert soft_switch(messages) is asked
    assert thinks(messages) is (asked is not False)
    assert thinks(messages, enable_thinking=False) is False


def test_a_conversation_is_split_before_each_query_that_has_an_answer() -> None:
    first = [system("s"), user("q"), assistant("", tool_calls=[CALL]), tool("3"), assistant("a")]
    second = [system("t"), user("p"), user("p!"), assistant("b")]
    last = [user("unanswered")]
    assert split_by_query(first + second + last) == [first, first + second]
    assert split_by_query([system("s"), assistant("a")]) == []


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "at least one message"),
        ([system(None)], "first system message needs text"),
        ([system(["x"])], "first system message needs text"),
        ([user("q"), assistant("", tool_calls=[{"name": "f"}])], "needs a name and arguments"),
        ([user("q"), assistant("", tool_calls=["f"])], "needs a name and arguments"),
    ],
)
def test_what_the_template_fails_on_is_refused_with_a_reason(messages: Any, reason: str) -> None:
    with pytest.raises(ChatError, match=reason):
        render(messages)


@pytest.mark.parametrize("left", ["both", "chat_template.jinja", "tokenizer_config.json"])
def test_transformers_renders_the_same_from_an_exported_folder(tmp_path: Path, left: str) -> None:
    transformers = pytest.importorskip("transformers")
    train(["the user asks, the assistant answers. " * 20], 300, tmp_path)
    before = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write_chat_template(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config == before | {"chat_template": FILE.read_text(encoding="utf-8")}
    if left == "chat_template.jinja":
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(before))
    elif left == "tokenizer_config.json":
        (tmp_path / "chat_template.jinja").unlink()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages, options, expected = CASES["tools_make_a_system_turn"]
    assert theirs.apply_chat_template(messages, tokenize=False, **options) == expected


def test_a_template_is_not_put_where_no_tokenizer_is(tmp_path: Path) -> None:
    with pytest.raises(ChatError, match="not a tokenizer folder"):
        write_chat_template(tmp_path)
