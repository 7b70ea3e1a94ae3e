"""A conversation's tokens are those of its text, and those that the model emits are trained."""

import unicodedata
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_prep.tokenizer import CONTROL_TOKENS, MARKUP_TOKENS, load, train
from megatron_qwen3.chat import (
    MARKUP,
    ChatError,
    ChatTokenizer,
    EncodedChat,
    render,
    split_by_query,
    turns_to_train,
)
from megatron_qwen3.posttrain.dialogs.encoder import ChatEncoder
from tests.conversations import (
    DIALOGS,
    HOSTILE,
    HOSTILE_CHAT,
    SOUND,
    TEXT,
    TOOLS,
    assistant,
    system,
    tool,
    user,
)

CORPUS = [
    "The answer is a number, and the user asks the assistant to think.\n\n" * 30,
    "a\n\n\n" * 30,
]
EMPTY = "<think>\n\n</think>\n\n"
CALL = {"name": "add", "arguments": {"a": 1}}
CALL_TEXT = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture(scope="module", params=["trained", "published"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "published":
        made: Path = request.getfixturevalue("published_folder")
        return made
    folder = tmp_path_factory.mktemp("tokenizer")
    train(CORPUS, 350, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> tokenizers.Tokenizer:
    return load(folder)


@pytest.fixture(scope="module")
def chat(tokenizer: tokenizers.Tokenizer) -> ChatTokenizer:
    return ChatTokenizer(tokenizer)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> ChatEncoder:
    return ChatEncoder(folder, compare=False)


def trained_text(tokenizer: tokenizers.Tokenizer, encoded: EncodedChat) -> list[str]:
    """The trained tokens, a text for each run of them."""
    pairs = groupby(zip(encoded.ids, encoded.trained, strict=True), key=lambda pair: pair[1])
    runs = [[index for index, _ in run] for learnt, run in pairs if learnt]
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def without_tags_of_tools(messages: Any) -> list[Any]:
    return [
        message | {"content": message["content"].replace("<", "(")}
        if message["role"] == "tool"
        else message
        for message in messages
    ]


@settings(max_examples=100, deadline=None)
@given(messages=SOUND.map(without_tags_of_tools), tools=TOOLS)
def test_ids_are_those_of_the_whole_text(
    tokenizer: tokenizers.Tokenizer, chat: ChatTokenizer, messages: Any, tools: Any
) -> None:
    text = render(messages, tools)
    assert chat.encode_conversation(messages, tools).ids == tokenizer.encode(text).ids
    prompt = render(messages, tools, add_generation_prompt=True)
    assert chat.encode_prompt(messages, tools) == tokenizer.encode(prompt).ids


@settings(max_examples=25, deadline=None)
@given(conversations=st.lists(HOSTILE_CHAT | DIALOGS, max_size=3))
def test_many_at_once_have_the_same_ids_and_masks(
    chat: ChatTokenizer, encoder: ChatEncoder, conversations: list[Any]
) -> None:
    expected = [chat.encode_conversation(one, train_history=False) for one in conversations]
    encoded = encoder.encode(turns_to_train(one, None, True) for one in conversations)
    assert encoded.tokens.tolist() == [index for one in expected for index in one.ids]
    assert encoded.trained.tolist() == [learnt for one in expected for learnt in one.trained]
    assert encoded.lengths.tolist() == [len(one.ids) for one in expected]


@settings(max_examples=50, deadline=None)
@given(messages=HOSTILE_CHAT)
def test_control_tokens_in_text_are_read_when_asked_for(
    tokenizer: tokenizers.Tokenizer, messages: Any
) -> None:
    chat = ChatTokenizer(tokenizer, control_tokens_in_text=True)
    assert chat.encode_conversation(messages).ids == tokenizer.encode(render(messages)).ids


@settings(max_examples=200, deadline=None)
@given(messages=HOSTILE_CHAT)
def test_a_messages_text_neither_ends_a_turn_nor_opens_one(
    tokenizer: tokenizers.Tokenizer, chat: ChatTokenizer, messages: Any
) -> None:
    harmless = [{"role": message["role"], "content": "x"} for message in messages]
    tokens = [t for t in (*CONTROL_TOKENS, *MARKUP_TOKENS) if t not in MARKUP]
    control = {tokenizer.token_to_id(token) for token in tokens}
    ids = chat.encode_conversation(messages).ids
    assert [index for index in ids if index in control] == [
        index for index in chat.encode_conversation(harmless).ids if index in control
    ]
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text == unicodedata.normalize("NFC", render(messages))


@settings(max_examples=200, deadline=None)
@given(results=st.lists(HOSTILE, min_size=1, max_size=3))
def test_what_a_tool_says_neither_ends_its_block_nor_thinks_nor_calls(
    tokenizer: tokenizers.Tokenizer, chat: ChatTokenizer, encoder: ChatEncoder, results: Any
) -> None:
    """Every tag among the ids is one of the format's, and the text is the tools' result."""
    added = set(tokenizer.get_added_tokens_decoder())

    def encoded(texts: Any) -> list[int]:
        messages = [user("q"), assistant(None, tool_calls=[CALL]), *map(tool, texts)]
        turns = list(turns_to_train(messages, None, True))
        ids = chat.encode_conversation(messages).ids
        assert encoder.encode([turns]).tokens.tolist() == ids
        said = tokenizer.decode(ids, skip_special_tokens=False)
        assert said == unicodedata.normalize("NFC", render(messages))
        return [index for index in ids if index in added]

    assert encoded(results) == encoded(["x"] * len(results))


@settings(max_examples=200, deadline=None)
@given(messages=SOUND, thinking=TEXT, answer=TEXT)
@pytest.mark.parametrize("enable_thinking", [True, False])
def test_before_the_last_answers_trained_tokens_stands_the_prompt_it_is_asked_with(
    chat: ChatTokenizer, enable_thinking: bool, messages: Any, thinking: str, answer: str
) -> None:
    """To the token; answers that begin with a line end are the documented exception."""
    messages = [message for message in messages if message["role"] != "assistant"]
    assume(not answer.lstrip("\n")[:1].isspace())
    assume("</think>" not in answer and not answer.lstrip("\n").startswith("<think>"))
    last = assistant(answer, reasoning_content=thinking if enable_thinking else "")
    whole = [*messages, user("q"), last]
    ids, trained = chat.encode_conversation(whole, enable_thinking=enable_thinking)
    prompt = chat.encode_prompt(whole[:-1], enable_thinking=enable_thinking)
    assert ids[: len(prompt)] == prompt
    assert trained == [False] * len(prompt) + [True] * (len(ids) - len(prompt) - 1) + [False]
    assert ids[-2] == chat.turn_end


@pytest.mark.parametrize(
    ("messages", "options", "expected"),
    [
        ([system("s"), user("q")], {}, []),
        ([user("q"), assistant("a")], {}, [f"{EMPTY}a<|im_end|>"]),
        ([user("q /no_think"), assistant("a")], {}, [f"{EMPTY}a<|im_end|>"]),
        ([user("q"), assistant("a")], {"enable_thinking": False}, ["a<|im_end|>"]),
        ([user("q"), assistant("")], {"enable_thinking": False}, ["<|im_end|>"]),
        (
            [user("q"), assistant("é a", reasoning_content="r"), user("p"), assistant("b\n")],
            {"enable_thinking": False},
            ["é a<|im_end|>", "b\n<|im_end|>"],
        ),
        (
            [user("q"), assistant("a", reasoning_content="r"), user("p"), assistant("r</think>b")],
            {"train_history": False},
            ["<think>\nr\n</think>\n\nb<|im_end|>"],
        ),
        (
            [user("q"), assistant(None, tool_calls=[CALL]), tool("1"), tool("2"), assistant("b")],
            {"tools": [CALL]},
            [f"{CALL_TEXT}<|im_end|>", f"{EMPTY}b<|im_end|>"],
        ),
    ],
)
def test_trained_is_what_the_model_emits(
    tokenizer: tokenizers.Tokenizer,
    chat: ChatTokenizer,
    messages: Any,
    options: Any,
    expected: list[str],
) -> None:
    assert trained_text(tokenizer, chat.encode_conversation(messages, **options)) == expected


def test_a_token_that_joins_the_prompts_newline_is_not_trained(
    tokenizer: tokenizers.Tokenizer, chat: ChatTokenizer
) -> None:
    """The model is asked after `assistant` and one newline, and never emits such a token."""
    encoded = chat.encode_conversation([user("q"), assistant("\n\na"), user("p")])
    header = [chat.turn_start, *tokenizer.encode("assistant").ids]
    start = encoded.ids.index(chat.turn_start, 1) + len(header)
    (joined,) = tokenizer.encode("\n\n\n").ids
    answer = [joined, *tokenizer.encode("a").ids, chat.turn_end]
    assert encoded.ids[start - len(header) : start + len(answer)] == header + answer
    assert encoded.trained[start : start + len(answer)] == [False, True, True]


def test_a_conversation_split_by_query_trains_every_answer_once_with_its_thinking(
    tokenizer: tokenizers.Tokenizer, chat: ChatTokenizer
) -> None:
    messages = []
    for k in range(3):
        call = assistant("", reasoning_content=f"c{k}", tool_calls=[CALL])
        answer = assistant(f"a{k}", reasoning_content=f"r{k}")
        messages += [user(f"q{k}"), call, tool("1"), answer]
    parts = [chat.encode_conversation(m, train_history=False) for m in split_by_query(messages)]
    assert [text for part in parts for text in trained_text(tokenizer, part)] == [
        f"<think>\n{thinking}\n</think>\n\n{answer}<|im_end|>"
        for k in range(3)
        for thinking, answer in ((f"c{k}", CALL_TEXT), (f"r{k}", f"a{k}"))
    ]


@pytest.mark.parametrize(
    ("messages", "options", "reason"),
    [
        ([user("q"), {"role": "developer", "content": "x"}], {}, "message 1 has role 'developer'"),
        ([{"content": "x"}], {}, "message 0 has role None; valid: system, user"),
        ([user(None)], {}, r"message 0 \(user\) has content that is not text"),
        ([user("q"), assistant(["x"])], {}, r"message 1 \(assistant\) has content that is not"),
        ([user("q"), assistant("a", reasoning_content=1)], {}, "reasoning_content that is not"),
        ([user("q"), assistant("a", reasoning=1)], {}, "reasoning that is not"),
        ([user("q"), assistant("a", reasoning="r", reasoning_content="s")], {}, "are not equal"),
        ([user("q"), assistant("a", reasoning="r", reasoning_content="")], {}, "are not equal"),
        ([user("q"), assistant("a", weight=0)], {}, r"message 1 \(assistant\) has 'weight', which"),
        ([user("q"), assistant("a", refusal="no")], {}, "has 'refusal'.*valid: content, reasoning"),
        ([user("q", name="Eve")], {}, r"message 0 \(user\) has 'name'"),
        ([user("q", reasoning_content="r")], {}, r"\(user\) has 'reasoning_content'"),
        ([user("q"), tool("1", tool_calls=[CALL])], {}, r"\(tool\) has 'tool_calls'"),
        (
            [user("q"), assistant("a", reasoning_content="r")],
            {"enable_thinking": False},
            "enable_thinking=False, but the conversation's last answer has thinking",
        ),
    ],
)
def test_data_that_rendering_would_pass_over_is_refused(
    chat: ChatTokenizer, messages: Any, options: Any, reason: str
) -> None:
    with pytest.raises(ChatError, match=reason):
        chat.encode_conversation(messages, **options)


def test_fields_that_say_nothing_are_no_fields_and_equal_reasoning_is_one(
    chat: ChatTokenizer,
) -> None:
    nothing = {"refusal": None, "annotations": [], "function_call": None, "audio": {}}
    both = assistant("a", reasoning="r", reasoning_content="r", **nothing)
    expected = chat.encode_conversation([user("q"), assistant("a", reasoning_content="r")])
    assert chat.encode_conversation([user("q", name=None), both]) == expected


def test_a_tokenizer_without_the_formats_tokens_is_refused() -> None:
    bare = tokenizers.Tokenizer(tokenizers.models.BPE())
    with pytest.raises(ChatError, match=r"needs each of <\|im_start\|>, <\|im_end\|>, <think>"):
        ChatTokenizer(bare)
