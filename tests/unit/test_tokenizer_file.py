"""No tokenizer.json cuts, fills or blows up a text, wherever one is read."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep import tokenizer_file, tokenizer_trust
from data_prep.clean.label import EvaluationSets
from data_prep.clean.settings import CleanSettings
from data_prep.engines import ENGINES
from data_prep.tokenization.corpus import CorpusOptions, tokenize
from data_prep.tokenization.plan import Settings
from data_prep.tokenizer import DocumentTokenizer, load, train
from data_prep.tokenizer_file import token_bytes
from megatron_qwen3.chat import ChatTokenizer
from megatron_qwen3.config import ConfigError

TEXT = "the river meets the sea where the town lies " * 20
TRUNCATION = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 700},
    "direction": "Left",
    "pad_to_multiple_of": None,
    "pad_id": 3,
    "pad_type_id": 0,
    "pad_token": "!",
}
CUT_AND_FILLED = {"truncation": TRUNCATION, "padding": PADDING}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    train([TEXT], 400, folder)
    return folder


def changed(plain: Path, folder: Path, **changes: Any) -> Path:
    spec = json.loads((plain / "tokenizer.json").read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps({**spec, **changes}))
    return folder


@pytest.mark.parametrize("engine", ENGINES)
def test_documents_are_tokenized_whole(plain: Path, tmp_path: Path, engine: str) -> None:
    if engine != "huggingface":
        pytest.importorskip(engine)
    folder = changed(plain, tmp_path / "t", **CUT_AND_FILLED)
    expected = DocumentTokenizer(plain, engine).encode_document(TEXT)
    for text in (TEXT, "a"):
        ids = DocumentTokenizer(folder, engine).encode_document(text)
        assert ids.tolist() == DocumentTokenizer(plain, engine).encode_document(text).tolist()
    assert len(expected) > 8


def test_chats_and_prompts_are_encoded_whole(plain: Path, tmp_path: Path) -> None:
    folder = changed(plain, tmp_path / "t", **CUT_AND_FILLED)
    messages = [{"role": "user", "content": TEXT}]
    chats = [ChatTokenizer(load(path)).encode_prompt(messages) for path in (folder, plain)]
    assert chats[0] == chats[1]
    for text in (TEXT, "a"):
        assert load(folder).encode(text).ids == load(plain).encode(text).ids


def test_evaluation_items_are_compared_whole(plain: Path, tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text(json.dumps({"question": TEXT}) + "\n")
    found = []
    for folder in (plain, changed(plain, tmp_path / "t", **CUT_AND_FILLED)):
        settings = CleanSettings((), "", decontaminate_against=(str(items),), tokenizer=str(folder))
        found.append(EvaluationSets(settings).passages.indices)
    assert [len(index.hashes) for index in found[0]] == [len(index.hashes) for index in found[1]]
    assert found[0]


def test_a_corpus_is_tokenized_whole_and_the_run_says_so_once(
    plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    documents = tmp_path / "a.jsonl"
    documents.write_text(json.dumps({"text": TEXT}) + "\n" + json.dumps({"text": "b"}) + "\n")
    folder = changed(plain, tmp_path / "t", **CUT_AND_FILLED)
    reports = [
        tokenize([documents], tmp_path / name, Settings(str(path)), CorpusOptions())
        for name, path in (("plain", plain), ("cut", folder))
    ]
    tokens = [sum(shard.tokens for shard in report.inventory.cells) for report in reports if report]
    assert tokens[0] == tokens[1]
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("asks for truncation to 8 tokens and padding: left aside") == 1
    copy = tmp_path / "cut" / "tokenizer" / "tokenizer.json"
    assert copy.read_bytes() == (folder / "tokenizer.json").read_bytes()  # the user's, as it is


def test_nothing_but_tokenizer_file_opens_a_tokenizer_json() -> None:
    """So that its fields are cleared everywhere: the rule, for modules yet to come."""
    root = Path(tokenizer_file.__file__).resolve().parents[1]
    tops = ("data_prep", "megatron_qwen3", "tools")
    files = [file for top in tops for file in root.glob(f"{top}/**/*.py")]
    assert files
    for file in files:
        text = file.read_text(encoding="utf-8")
        for way in ("Tokenizer.from_file", "Tokenizer.from_buffer", "AutoTokenizer"):
            assert way not in text, file


def replaced(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


DOUBLING = replaced({"String": "a"}, "aa")


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [DOUBLING] * 60}},
        {"normalizer": replaced({"String": ""}, "b" * 1000)},
        {"normalizer": replaced({"Regex": "x?"}, "b" * 1000)},
        {"normalizer": {"type": "Prepend", "prepend": "b" * 1000}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
        {"decoder": {"type": "Sequence", "decoders": [DOUBLING] * 60}},
    ],
)
def test_a_normalizer_that_explodes_is_refused_before_it_runs(
    plain: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = changed(plain, tmp_path, **changes)
    for reads in (load, DocumentTokenizer):
        with pytest.raises(ConfigError, match=r"tokenizer .*tokenizer\.json: its \w+ can make"):
            reads(folder)
    assert (token_bytes(folder) == token_bytes(plain)).all()  # which runs nothing of it


def with_pattern(plain: Path, folder: Path, pattern: str) -> Path:
    spec = json.loads((plain / "tokenizer.json").read_bytes())
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pattern}
    return changed(plain, folder, pre_tokenizer=spec["pre_tokenizer"])


@pytest.mark.parametrize("pattern", ["(a+)+b", "(.*a){12}z", "(a"])
def test_a_pattern_that_explodes_is_an_error_that_names_the_tokenizer(
    plain: Path, tmp_path: Path, pattern: str
) -> None:
    folder = with_pattern(plain, tmp_path, pattern)
    for reads in (load, DocumentTokenizer):
        with pytest.raises(ConfigError, match=r"tokenizer .*tokenizer\.json: it cannot be used"):
            reads(folder)


def test_a_pattern_without_an_end_is_given_up(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_pattern(plain, tmp_path, "(a|b)*c")
    monkeypatch.setattr(tokenizer_trust, "TRIAL_SECONDS", 1e-6)
    with pytest.raises(ConfigError, match=r"tokenizer .*: its patterns are not done"):
        load(folder)


def test_patterns_that_take_all_memory_are_refused(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_pattern(plain, tmp_path, "(a|c)*d")
    monkeypatch.setattr(tokenizer_trust, "_TRIAL_BYTES", 1 << 20)
    with pytest.raises(ConfigError, match=r"tokenizer .*: it cannot be used"):
        load(folder)


def test_a_failure_at_a_text_names_the_tokenizer(plain: Path, tmp_path: Path) -> None:
    folder = with_pattern(plain, tmp_path, "(é+)+b")  # harmless but for a text nobody tries
    tokenizer = DocumentTokenizer(folder, "huggingface")
    with pytest.raises(ConfigError, match=r"tokenizer .*tokenizer\.json fails at a text"):
        tokenizer.encode_document("é" * 40)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda spec: spec["model"].update(byte_fallback=True), "byte_fallback"),
        (lambda spec: spec.update(pre_tokenizer=None), "has no ByteLevel"),
        (lambda spec: spec["model"].update(type="Unigram"), "not a byte-level BPE"),
    ],
)
def test_what_is_not_byte_level_is_refused(
    plain: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    spec = json.loads((plain / "tokenizer.json").read_bytes())
    change(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    for reads in (DocumentTokenizer, token_bytes):
        with pytest.raises(ConfigError, match=reason):
            reads(tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"added_tokens": 1}', "\x00"])
def test_what_is_no_tokenizer_is_told_in_a_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    for reads in (load, DocumentTokenizer, token_bytes, tokenizer_file.cut_note):
        with pytest.raises(ConfigError, match=r"tokenizer\.json is not a tokenizer\.json"):
            reads(tmp_path)


@pytest.mark.parametrize("number", [1 << 40, -1, 1.0, "1", None])
@pytest.mark.parametrize("read_ids", [DocumentTokenizer, token_bytes])
def test_ids_that_are_none_are_refused_before_an_array_is_as_long(
    plain: Path, tmp_path: Path, number: Any, read_ids: Any
) -> None:
    spec = json.loads((plain / "tokenizer.json").read_text())
    added = [{**spec["added_tokens"][0], "id": number}, *spec["added_tokens"][1:]]
    model = {**spec["model"], "vocab": {**spec["model"]["vocab"], "a": number}}
    for changes in ({"added_tokens": added}, {"model": model}):
        folder = changed(plain, tmp_path / next(iter(changes)), **changes)
        with pytest.raises(ConfigError, match="tokenizer.json is damaged: its tokens"):
            read_ids(folder)


def test_a_known_pattern_costs_no_process(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", refused)
    load(plain)
    assert tokenizer_file.cut_note(plain) == ""
