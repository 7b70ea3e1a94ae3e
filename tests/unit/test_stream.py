"""Streamed pieces are whole characters, and together the whole text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import tokenizer as tokenizers
from megatron_qwen3.generate.stream import TextStream

LOST = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One with hardly a merge: all but ASCII is spread over several tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.train(["ab abc <"] * 9, 290, folder)
    return tokenizers.load(folder)


def pieces(tokenizer, ids):
    stream = TextStream(tokenizer)
    return [*(stream.add(token) for token in ids), stream.end()]


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_characters=LOST, codec="utf-8")))
def test_pieces_are_whole_characters_and_together_the_text(tokenizer, text):
    ids = tokenizer.encode(text).ids
    shown = pieces(tokenizer, ids)
    assert "".join(shown) == tokenizer.decode(ids)
    assert LOST not in "".join(shown)
    assert shown[-1] == ""


def test_a_character_comes_with_its_last_byte(tokenizer):
    ids = tokenizer.encode("a€😀b").ids
    assert [piece for piece in pieces(tokenizer, ids) if piece] == ["a", "€", "😀", "b"]
    assert len(ids) == 1 + 3 + 4 + 1


def test_bytes_that_never_become_a_character_are_shown_as_lost(tokenizer):
    ids = tokenizer.encode("😀").ids
    assert "".join(pieces(tokenizer, ids[:2])) == tokenizer.decode(ids[:2]) == LOST
    ab = tokenizer.encode("ab").ids
    assert "".join(pieces(tokenizer, [*ids[:3], *ab])) == tokenizer.decode([*ids[:3], *ab])


def test_control_tokens_are_not_shown_and_think_tags_are(tokenizer):
    ids = tokenizer.encode("<think>a</think>b<|im_end|>").ids
    assert "".join(pieces(tokenizer, ids)) == "<think>a</think>b"
