"""Masks and ids of whole batches: the reference's, and the text that assistants say."""

import json
import unicodedata
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_prep.engines import ENGINES
from data_prep.tokenizer import load, train, write
from megatron_qwen3.chat import ChatError, turns_to_train
from megatron_qwen3.chat_template import FILE
from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.dialogs.encoder import ChatEncoder
from megatron_qwen3.posttrain.dialogs.samples import Choices, LineRefused, decoder, samples_of
from tests.conversations import DIALOGS, HOSTILE_CHAT, SOUND, TOOLS, assistant, user

CORPUS = ["The answer is a number, and the user asks the assistant to think.\n\n" * 30]
CORPUS += ["a\n\n\n" * 30, "日本 Wörter\r\n \r\n" * 20]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train(CORPUS, 380, folder)
    return folder


@pytest.fixture(scope="module", params=ENGINES)
def encoder(request: pytest.FixtureRequest, trained: Path) -> ChatEncoder:
    return ChatEncoder(trained, request.param)


def check_same(encoder: ChatEncoder, conversations: list[Any], enable_thinking: bool) -> None:
    """The batch equals the reference's results, one by one."""
    expected, turns = [], []
    for messages, tools in conversations:
        try:
            expected.append(
                encoder.chat.encode_conversation(
                    messages, tools, enable_thinking=enable_thinking, train_history=False
                )
            )
        except ChatError:
            continue
        turns.append(turns_to_train(messages, tools, enable_thinking))
    encoded = encoder.encode(turns)
    assert encoded.tokens.tolist() == [index for one in expected for index in one.ids]
    assert encoded.trained.tolist() == [learnt for one in expected for learnt in one.trained]
    assert encoded.lengths.tolist() == [len(one.ids) for one in expected]


@settings(max_examples=100, deadline=None)
@given(
    conversations=st.lists(st.tuples(HOSTILE_CHAT | SOUND | DIALOGS, TOOLS), max_size=3),
    enable_thinking=st.booleans(),
)
def test_ids_and_masks_are_the_references(
    encoder: ChatEncoder, conversations: list[Any], enable_thinking: bool
) -> None:
    check_same(encoder, conversations, enable_thinking)


@pytest.mark.parametrize("start", ["\n", "\r\n", " ", " \n", "\t", "\u2028\n", "\x1c\n", "\u0301"])
@pytest.mark.parametrize("rest", ["a", "", "\na", " a", "\u0301a", "'s", "9", "\n"])
def test_answers_that_begin_with_white_space_have_the_references_ids(
    encoder: ChatEncoder, start: str, rest: str
) -> None:
    call = assistant(start + rest, tool_calls=[{"name": "f", "arguments": {}}])
    messages = [user("q"), call, {"role": "tool", "content": rest}, assistant(f"{rest}a")]
    check_same(encoder, [(messages, None), (messages[:2], None)], enable_thinking=False)
    check_same(encoder, [(messages, None), (messages[:2], None)], enable_thinking=True)


# Characters of no message, in place of the control tokens that messages have as text.
STAND_INS = {
    "<|im_start|>": "\ue000",
    "<|im_end|>": "\ue001",
    "<|endoftext|>": "\ue002",
    "<|fim_pad|>": "\ue003",
}


def replaced(value: Any, pairs: dict[str, str]) -> Any:
    if isinstance(value, str):
        for old, new in pairs.items():
            value = value.replace(old, new)
        return value
    if isinstance(value, list):
        return [replaced(inner, pairs) for inner in value]
    if isinstance(value, dict):
        return {replaced(k, pairs): replaced(inner, pairs) for k, inner in value.items()}
    return value


def published_turns(messages: Any, tools: Any) -> list[str]:
    """The turns of the published template's text, as transformers renders it, with their ends."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = FILE.read_text(encoding="utf-8")
    rendered, _ = render_jinja_template(
        conversations=[replaced(messages, STAND_INS)], tools=tools, chat_template=template
    )
    back = {new: old for old, new in STAND_INS.items()}
    turns = str(rendered[0]).split("<|im_start|>")[1:]
    assert all(turn.endswith("<|im_end|>\n") and turn.count("<|im_end|>") == 1 for turn in turns)
    return [replaced(turn, back) for turn in turns]


def answers_to_the_last_query(turns: list[str]) -> list[str]:
    """Of the rendered turns those that an assistant says after the last query, to their ends."""
    queries = [
        k
        for k, turn in enumerate(turns)
        if turn.startswith("user\n")
        and not (
            turn.startswith("user\n<tool_response>")
            and turn.endswith("</tool_response><|im_end|>\n")
        )
    ]
    after = turns[queries[-1] :]
    return [t.removeprefix("assistant\n")[:-1] for t in after if t.startswith("assistant\n")]


def runs(tokenizer: tokenizers.Tokenizer, ids: list[int], trained: list[bool]) -> list[str]:
    grouped = groupby(zip(ids, trained, strict=True), key=lambda pair: pair[1])
    found = [[index for index, _ in run] for learnt, run in grouped if learnt]
    return [tokenizer.decode(run, skip_special_tokens=False) for run in found]


@settings(max_examples=250, deadline=None)
@given(messages=DIALOGS, tools=TOOLS)
def test_trained_tokens_are_exactly_what_the_assistant_says(
    proof: ChatEncoder, tokenizer: tokenizers.Tokenizer, messages: Any, tools: Any
) -> None:
    """From the line of JSON on, for each query that is answered; decoding gives the text in NFC."""
    line = json.dumps({"messages": messages, "tools": tools}).encode()
    try:
        decoded = decoder("dialogs").decode(line)
    except ValueError:
        assume(False)
    try:
        samples = samples_of(decoded, Choices())
    except LineRefused as error:
        assert error.kind == "no query"  # all questions are tools' results
        assume(False)
    encoded = proof.encode([sample.turns for sample in samples])
    read = json.loads(line)["messages"]
    ends = [k for k, m in enumerate(read) if m["role"] == "assistant" and _is_last(read, k)]
    start = 0
    for end, length in zip(ends, encoded.lengths, strict=True):
        turns = published_turns(read[: end + 1], json.loads(line)["tools"])
        ids = encoded.tokens[start : start + length].tolist()
        said = runs(tokenizer, ids, encoded.trained[start : start + length].tolist())
        expected = [unicodedata.normalize("NFC", t) for t in answers_to_the_last_query(turns)]
        assert len(said) == len(expected)
        for actual, text in zip(said, expected, strict=True):
            # A line end that joins the prompt's last one to a token is not trained: chat.py.
            assert actual == text or actual.lstrip() == text.lstrip()
            assert text.endswith(actual) and (actual == text or _begins_with_line_end(text))
        whole = "".join(f"<|im_start|>{turn}" for turn in turns)
        text = tokenizer.decode(ids, skip_special_tokens=False)
        assert text == unicodedata.normalize("NFC", whole)
        start += length


def _is_last(messages: list[Any], k: int) -> bool:
    """Whether this answer is the last one to a query."""

    def is_query(m: Any) -> bool:
        text = m["content"]
        is_result = text.startswith("<tool_response>") and text.endswith("</tool_response>")
        return m["role"] == "user" and not is_result

    begun = any(map(is_query, messages[:k]))
    rest = [m for m in messages[k + 1 :] if is_query(m) or m["role"] == "assistant"]
    return begun and (not rest or is_query(rest[0]))


def _begins_with_line_end(text: str) -> bool:
    blank = text[: len(text) - len(text.lstrip())]
    return "\n" in blank or "\r" in blank


@pytest.fixture(scope="module")
def proof(trained: Path) -> ChatEncoder:
    return ChatEncoder(trained)


@pytest.fixture(scope="module")
def tokenizer(trained: Path) -> tokenizers.Tokenizer:
    return load(trained)


def test_no_dialogs_are_no_tokens(proof: ChatEncoder) -> None:
    assert not proof.note
    encoded = proof.encode([])
    assert [len(part) for part in encoded] == [0, 0, 0]


def test_a_tokenizer_of_another_pattern_has_the_references_ids_too(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    write(tokenizer, tmp_path)
    encoder = ChatEncoder(tmp_path)
    assert "does not split texts as Qwen's" in encoder.note
    messages = [user("q\n\n"), assistant("  \n a", tool_calls=[{"name": "f", "arguments": {}}])]
    check_same(encoder, [(messages, None), ([user("q"), assistant(" \na")], None)], True)
    check_same(encoder, [(messages, None), ([user("q"), assistant(" \na")], None)], False)


def test_a_tokenizer_without_the_formats_tokens_is_refused(tmp_path: Path, trained: Path) -> None:
    spec = json.loads((trained / "tokenizer.json").read_text(encoding="utf-8"))
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] != "</think>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ConfigError, match="not a tokenizer for chat.* and has no </think>"):
        ChatEncoder(tmp_path)
