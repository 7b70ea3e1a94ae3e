"""The quickstart's corpora are right, repeatable and disjoint; preparing twice is one work."""

import json
import re
import unicodedata
from itertools import combinations
from pathlib import Path

import pytest

from data_prep.languages import LANGUAGES
from data_prep.mixing import recipe as recipes
from data_prep.mixing.plan import DOMAINS
from examples.quickstart import corpora, prepare, reasoning
from megatron_qwen3.config import ConfigError, load

EQUATION = re.compile(r"(?<![\d.])(-?\d+(?: [-+×*/] \d+)+) = (-?\d+)(?![\d/.])")
TINY = [
    {"id": "words/0", "text": "some words\n", "source": "words", "domain": "web"},
    {"id": "other/0", "text": "слова и ещё слова\n", "source": "other", "domain": "web"},
    {"id": "words/1", "text": "and more words\n", "source": "words", "domain": "web"},
]


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
    collected: dict[str, set[str]] = {}
    for document in corpora.documents():
        collected.setdefault(document["source"], set()).add(document["text"])
    assert collected.keys() == {*corpora.CORPORA, "multilingual"}
    for (one, a), (other, b) in combinations(collected.items(), 2):
        assert not a & b, f"{one} and {other} share a document"


def test_collecting_twice_gives_the_same_documents() -> None:
    assert corpora.code() == corpora.code()
    assert corpora.long() == corpora.long()


def test_long_documents_are_long() -> None:
    assert min(len(text.encode()) for text in corpora.long()) >= 0.9 * corpora.LONG_MODULE_BYTES


def test_multilingual_texts_are_nfc_and_in_every_script() -> None:
    texts = [text for name in corpora.LANGUAGES for text in corpora.multilingual(name)]
    assert all(unicodedata.is_normalized("NFC", text) for text in texts)
    letters = {char for text in texts for char in text if char.isalpha()}
    scripts = {unicodedata.name(char).split()[0] for char in letters}
    expected = "LATIN CYRILLIC GREEK HEBREW ARABIC DEVANAGARI THAI HANGUL HIRAGANA KATAKANA CJK"
    assert set(expected.split()) <= scripts


def test_documents_have_ids_of_their_own_and_labels_that_the_tools_know() -> None:
    documents = list(corpora.documents())
    assert len({document["id"] for document in documents}) == len(documents)
    assert {document["language"] for document in documents} <= {*LANGUAGES, "und"}
    assert {document["domain"] for document in documents} <= set(DOMAINS)
    texts = Path(corpora.__file__).parent / "texts"
    assert {path.stem for path in texts.glob("*.txt")} == set(corpora.LANGUAGES)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "documents", lambda: iter(TINY))


@pytest.mark.usefixtures("tiny")
def test_prepared_files_hold_the_documents(tmp_path: Path) -> None:
    manifest = prepare.prepare(tmp_path / "documents")
    assert manifest["sources"]["words"] == {"documents": 2, "bytes": 26}
    for name in ("words", "other"):
        lines = (tmp_path / "documents" / f"{name}.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(line) for line in lines] == [d for d in TINY if d["source"] == name]


@pytest.mark.usefixtures("tiny")
def test_a_second_call_writes_nothing(tmp_path: Path) -> None:
    first = prepare.prepare(tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert prepare.prepare(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("lost", ["words.jsonl", "manifest.json"])
def test_what_is_missing_is_made_again(tmp_path: Path, lost: str) -> None:
    prepare.prepare(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / lost).unlink()
    prepare.prepare(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_stages_of_the_quickstart_are_as_long_as_their_trainings() -> None:
    folder = Path(corpora.__file__).parent
    planned = {stage.name: stage for stage in recipes.load(folder / "curriculum.toml").stages}
    for path in sorted(folder.glob("stage_*.toml")):
        config = load([path, folder / "model.toml"])
        stage = planned.pop(config.data.stage)
        assert stage.sequence_length == config.data.sequence_length
        assert stage.tokens == config.steps * config.step_tokens
    assert not planned


@pytest.mark.usefixtures("tiny")
def test_a_folder_with_anything_else_in_it_is_left_as_it_is(tmp_path: Path) -> None:
    prepare.prepare(tmp_path / "ours")
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    (tmp_path / "ours" / "manifest.json").write_text('{"made_from": "old", "sources": {}}')
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("mine")
    for name in ("ours", "theirs"):
        before = {p: p.read_bytes() for p in (tmp_path / name).iterdir()}
        with pytest.raises(ConfigError, match="not made here; choose another folder"):
            prepare.prepare(tmp_path / name)
        assert {p: p.read_bytes() for p in (tmp_path / name).iterdir()} == before
