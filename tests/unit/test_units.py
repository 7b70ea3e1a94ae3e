"""Units are words or characters, and nothing else of a text counts; signatures measure likeness."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import minhash
from data_prep.units import shingles, split


def _same(a: str, b: str) -> bool:
    return np.array_equal(split(a).hashes, split(b).hashes)


def test_case_punctuation_and_spacing_do_not_count() -> None:
    assert _same("The end. Of  it!", "the END of\n(it)")
    assert not _same("the end of it", "the end it of")
    assert not _same("ab cd", "abcd")


def test_words_keep_their_marks_and_other_scripts_are_single_characters() -> None:
    text = "पानी गरम है"
    assert [text[a:b] for a, b in zip(split(text).starts, split(text).ends, strict=True)] == (
        text.split()
    )
    assert len(split("河流从山里流出来。")) == 8
    assert split("แม่น้ำ").without_spaces
    assert not split("река 河").without_spaces


@given(st.text(max_size=200))
def test_any_text_has_units_in_order_within_it(text: str) -> None:
    units = split(text)
    assert (units.starts < units.ends).all()
    assert (units.ends[:-1] <= units.starts[1:]).all()
    assert len(shingles(units.hashes, 5)) == (max(1, len(units) - 4) if len(units) else 0)


def test_a_text_of_millions_of_characters_has_the_units_of_its_pieces() -> None:
    words = [f"w{k}" for k in range(300_000)]
    text = " ".join(words)
    units = split(text)
    whole = {text[a:b] for a, b in zip(units.starts, units.ends, strict=True)}
    assert len(text) > 2_000_000
    assert len(whole & set(words)) >= len(words) - 2


def test_words_are_told_apart() -> None:
    words = [f"{a}{b}{c}" for a in "abcdefgh" for b in "abcdefghij" for c in range(50)]
    assert len(set(split(" ".join(words)).hashes.tolist())) == len(words)
    assert len(np.unique(shingles(split(" ".join(words)).hashes, 5))) == len(words) - 4


@pytest.mark.parametrize("shared", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("length", [60, 2000])
def test_a_signature_estimates_the_similarity(shared: float, length: int) -> None:
    generator = random.Random(length)
    errors = []
    for _ in range(40):
        a = [generator.getrandbits(63) for _ in range(length)]
        b = a[: int(shared * length)] + [generator.getrandbits(63) for _ in range(length)]
        sets = [shingles(np.array(units, np.uint64), 5) for units in (a, b[:length])]
        exact = len(np.intersect1d(*sets)) / len(np.union1d(*sets))
        pair = [minhash.signature(np.array(units, np.uint64)) for units in (a, b[:length])]
        errors.append(float(minhash.similarity(*pair)) - exact)
    assert abs(np.mean(errors)) < 0.03
    assert np.std(errors) < 0.09 if length < 100 else np.std(errors) < 0.06


def test_short_and_empty_texts_have_signatures() -> None:
    assert not minhash.signature(split("").hashes).any()
    one, other = (minhash.signature(split(text).hashes) for text in ("a word", "two words"))
    assert minhash.similarity(one, one) == 1
    assert minhash.similarity(one, other) < 0.5
