"""Texts that mean the same are the same characters afterwards, and none loses its meaning."""

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.normalize import normalize


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ame\u0301lie", "Amélie"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a\x07b\u200bc\ufeff", "abc"),
        ("R&amp;D &amp;lt;b&gt; &#39;x&#39;", "R&D <b> 'x'"),
        ("?a=1&lt=2&copy", "?a=1&lt=2&copy"),
        ("one  \n\n\n\n two ", "one\n\n two"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # Persian joins by U+200C
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("lone \ud800 surrogate", "lone  surrogate"),
    ],
)
def test_examples(text: str, expected: str) -> None:
    assert normalize(text) == expected


def test_code_keeps_its_blanks_and_references() -> None:
    assert normalize("\n  if a &amp;&amp; b:  \r\n\n\n\n    pass\n", is_code=True) == (
        "  if a &amp;&amp; b:  \n\n\n\n    pass"
    )


@given(st.text())
def test_a_normalized_text_is_nfc_and_encodable(text: str) -> None:
    once = normalize(text)
    assert once == unicodedata.normalize("NFC", once)
    once.encode("utf-8")


@given(st.text(st.characters(exclude_characters="&"), max_size=300))
def test_normalizing_twice_changes_nothing(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once


def test_a_long_run_of_blanks_within_a_line_costs_no_more_than_words() -> None:
    text, began = "a" + " " * 30_000 + "b \n" + "c\t" + " " * 30_000, time.process_time()
    assert normalize(text) == "a" + " " * 30_000 + "b\nc"
    assert time.process_time() - began < 1  # its length squared takes ten
