"""The quickstart's corpora are right, repeatable and disjoint; preparing twice is one work."""

from __future__ import annotations

import re
import unicodedata
from itertools import combinations
from pathlib import Path

import pytest

from data_prep.indexed import IndexedReader
from data_prep.tokenizer import load
from examples.quickstart import corpora, prepare, reasoning

EQUATION = re.compile(r"(?<![\d.])(-?\d+(?: [-+×*/] \d+)+) = (-?\d+)(?![\d/.])")
TINY = {
    "words": lambda: [f"document {n} of some words, and once more some words\n" for n in range(50)],
    "other": lambda: ["слова и ещё слова, и снова слова\n"] * 20,
}


@pytest.fixture(scope="module")
def problems() -> list[str]:
    return reasoning.worked_problems(megabytes=0.3, seed=1)


def test_every_equation_in_a_worked_problem_is_true(problems: list[str]) -> None:
    equations = [match for text in problems for match in EQUATION.findall(text)]
    assert len(equations) > 3 * len(problems) // 2
    wrong = [(left, right) for left, right in equations if _value(left) != int(right)]
    assert not wrong


def _value(left: str) -> float:
    return float(eval(left.replace("×", "*")))  # digits and operators alone, by EQUATION


def test_the_answer_of_a_traced_program_is_what_it_prints(
    problems: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    traced = [text for text in problems if "this program" in text]
    assert len(traced) > 20
    for text in traced:
        program = text.split("print?\n\n")[1].split("\n\nSteps:")[0]
        exec(program, {})  # noqa: S102 -- written by our own generator
        assert capsys.readouterr().out.strip() == text.split("Answer: ")[1].strip()


def test_every_kind_of_problem_appears_and_none_twice(problems: list[str]) -> None:
    assert len(set(problems)) == len(problems)
    openings = {re.sub(r"[\d\W]+", " ", text)[:18] for text in problems}
    assert len(openings) >= len(reasoning.KINDS)


def test_the_same_seed_gives_the_same_problems(problems: list[str]) -> None:
    assert reasoning.worked_problems(megabytes=0.3, seed=1) == problems
    assert reasoning.worked_problems(megabytes=0.3, seed=2)[:9] != problems[:9]


def test_no_document_is_in_two_corpora() -> None:
    collected = {name: set(collect()) for name, collect in corpora.CORPORA.items()}
    assert all(collected.values())
    for (one, a), (other, b) in combinations(collected.items(), 2):
        assert not a & b, f"{one} and {other} share a document"


def test_collecting_twice_gives_the_same_documents() -> None:
    assert corpora.code() == corpora.code()
    assert corpora.long() == corpora.long()


def test_long_documents_are_long() -> None:
    assert min(len(text.encode()) for text in corpora.long()) >= 0.9 * corpora.LONG_MODULE_BYTES


def test_multilingual_texts_are_nfc_and_in_every_script() -> None:
    texts = corpora.multilingual()
    assert all(unicodedata.is_normalized("NFC", text) for text in texts)
    letters = {char for text in texts for char in text if char.isalpha()}
    scripts = {unicodedata.name(char).split()[0] for char in letters}
    expected = "LATIN CYRILLIC GREEK HEBREW ARABIC DEVANAGARI THAI HANGUL HIRAGANA KATAKANA CJK"
    assert set(expected.split()) <= scripts


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "CORPORA", TINY)


@pytest.mark.usefixtures("tiny")
def test_prepared_files_hold_the_documents(tmp_path: Path) -> None:
    manifest = prepare.prepare(tmp_path, vocab_size=320)
    tokenizer = load(tmp_path / "tokenizer")
    for name, collect in TINY.items():
        reader = IndexedReader(tmp_path / name)
        assert manifest["sources"][name]["tokens"] == len(reader.tokens)
        decoded = tokenizer.decode(reader.tokens.tolist(), skip_special_tokens=False)
        assert sorted(decoded.split("<|endoftext|>")) == sorted(["", *collect()])


@pytest.mark.usefixtures("tiny")
def test_a_second_call_writes_nothing(tmp_path: Path) -> None:
    first = prepare.prepare(tmp_path, vocab_size=320)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert prepare.prepare(tmp_path, vocab_size=320) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("lost", ["words.idx", "manifest.json", "tokenizer/tokenizer.json"])
def test_what_is_missing_is_made_again(tmp_path: Path, lost: str) -> None:
    prepare.prepare(tmp_path, vocab_size=320)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / lost).unlink()
    prepare.prepare(tmp_path, vocab_size=320)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("tiny")
def test_another_vocabulary_size_makes_the_data_anew(tmp_path: Path) -> None:
    before = prepare.prepare(tmp_path, vocab_size=320)
    after = prepare.prepare(tmp_path, vocab_size=300)
    assert after["made_from"] != before["made_from"]
    assert after["sources"]["words"]["tokens"] > before["sources"]["words"]["tokens"]
