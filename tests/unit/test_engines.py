"""Every engine gives the ids of Hugging Face's tokenizers, on whatever text there may be."""

import gzip
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep import engines
from data_prep.tokenizer import CONTROL_TOKENS, MARKUP_TOKENS, DocumentTokenizer, train
from megatron_qwen3.config import ConfigError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FAST = [name for name in engines.ENGINES if name != engines.REFERENCE]
SPACES = [chr(c) for c in range(0x110000) if chr(c).isspace()] + ["\u200b", "\ufeff", "\u180e"]
MARKS = [chr(c) for c in range(0x20000) if unicodedata.combining(chr(c))]
PIECES = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
    st.text(st.sampled_from(SPACES), min_size=1, max_size=6),
    st.builds(
        str.__add__, st.sampled_from("aeAk한ㄱ"), st.text(st.sampled_from(MARKS), max_size=4)
    ),
    st.text(st.characters(min_codepoint=0x1100, max_codepoint=0x11FF), max_size=5),
    st.sampled_from(
        [*CONTROL_TOKENS, *MARKUP_TOKENS, "'s", "'RE", "'ſ", "’ll", "123", "\r\n", " "]
    ),
)
TEXT = st.lists(PIECES, max_size=12).map("".join)


@pytest.fixture(scope="module")
def qwen3(published_folder: Path) -> dict[str, Any]:
    file = published_folder / "tokenizer.json"
    spec: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {**spec, "added_tokens": []}


@pytest.fixture(scope="module")
def loaded(qwen3: dict[str, Any]) -> dict[str, engines.Engine]:
    return {name: engines.ENGINES[name](qwen3) for name in engines.ENGINES}


def same(a: engines.Encoded, b: engines.Encoded) -> bool:
    return np.array_equal(a.tokens, b.tokens) and np.array_equal(a.lengths, b.lengths)


@pytest.mark.parametrize("name", FAST)
def test_the_default_engine_is_exact_and_is_taken(name: str, qwen3: dict[str, Any]) -> None:
    pytest.importorskip(name)
    assert engines.choose(qwen3)[::2] == (FAST[0], "")
    if name != FAST[0]:
        assert engines.choose(qwen3, name).name == name


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=4))
@example(["a\u08e1\u1df9\U00016b30b"])  # marks whose order newer tables of Unicode change
@example(["\U000323b0's \u0c5c1 \U0001e6c0\n"])  # letters that newer tables know
def test_ids_of_any_text_equal_hugging_faces(
    loaded: dict[str, engines.Engine], texts: list[str]
) -> None:
    expected = loaded[engines.REFERENCE](texts)
    for name in FAST:
        assert same(loaded[name](texts), expected), name


@pytest.mark.slow
def test_ids_of_every_code_point_equal_hugging_faces(loaded: dict[str, engines.Engine]) -> None:
    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for start in range(0, len(points), 8192):
        texts = [f"a{c}'s {c}1 {c}\n" for c in points[start : start + 8192]]
        expected = loaded[engines.REFERENCE](texts)
        for name in FAST:
            assert same(loaded[name](texts), expected), (name, hex(ord(texts[0][1])))


@pytest.mark.parametrize("file", ["tldr_39langs", "mgsm", "sib200_119"])
def test_ids_of_real_text_equal_hugging_faces(loaded: dict[str, engines.Engine], file: str) -> None:
    path = SHARED / f"{file}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [text for line in lines for text in json.loads(line).values() if len(text) > 40]
    texts = texts[:: len(texts) // 2000 + 1]
    expected = loaded[engines.REFERENCE](texts)
    for name in FAST:
        assert same(loaded[name](texts), expected), name


def test_an_engine_that_is_not_exact_is_refused_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(["some words"] * 9, 400, tmp_path)

    def wrong(spec: dict[str, Any]) -> engines.Engine:
        return lambda texts: engines.Encoded(np.zeros(3, np.uint32), np.array([3]))

    def missing(spec: dict[str, Any]) -> engines.Engine:
        raise ModuleNotFoundError("missing")

    reference = engines.ENGINES[engines.REFERENCE]
    known = {"wrong": wrong, "missing": missing, engines.REFERENCE: reference}
    monkeypatch.setattr(engines, "ENGINES", known)
    tokenizer = DocumentTokenizer(tmp_path)
    assert tokenizer.engine == engines.REFERENCE
    assert tokenizer.engine_note == (
        "wrong gives other ids than Hugging Face's tokenizers; "
        "missing is not installed: python -m pip install missing"
    )
    with pytest.raises(ConfigError, match="wrong gives other ids"):
        DocumentTokenizer(tmp_path, "wrong")
    with pytest.raises(ConfigError, match="valid: auto, wrong, missing, huggingface"):
        DocumentTokenizer(tmp_path, "fastest")
