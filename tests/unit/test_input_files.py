"""The files of a folder that are read, notes on the others, and valid names."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.inventory import read_inventory
from data_prep.json_files import read_json
from data_prep.shards import origin
from data_prep.tokenization.corpus import CorpusOptions, tokenize
from data_prep.tokenization.plan import PLAN, Settings
from data_prep.tokenizer import train
from megatron_qwen3.cli import clean_corpus, inspect_shards, tokenize_corpus, train_tokenizer
from megatron_qwen3.config import ConfigError

ROW = json.dumps({"text": "the river meets the sea"}) + "\n"
ODD = os.fsdecode(b"caf\xe9 \xff.jsonl")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    train(["the river meets the sea"] * 9, 300, folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file to be read, four hidden ones, and two of other kinds."""
    files = ("a.jsonl", ".b.jsonl", ".ipynb_checkpoints/a.jsonl", "c/.d/e.jsonl", "._a.jsonl")
    for name in (*files, "notes.pdf", "c/image.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(ROW)
    return tmp_path / "in"


def test_hidden_files_are_passed_over_and_files_of_other_kinds_told(
    folder: Path, tmp_path: Path, tokenizer: str, capfd: pytest.CaptureFixture[str]
) -> None:
    report = tokenize([folder], tmp_path / "out", Settings(tokenizer), CorpusOptions())
    assert report is not None and report.lines == 1
    said = " ".join(capfd.readouterr().err.split())
    assert "not read for the ends of their names: 1 .pdf, 1 .png; the first is" in said
    hidden = folder / ".b.jsonl"  # what is named is read
    report = tokenize([hidden], tmp_path / "named", Settings(tokenizer), CorpusOptions())
    assert report is not None and report.lines == 1


def test_a_plan_that_began_with_hidden_files_goes_on_with_them(
    folder: Path, tmp_path: Path, tokenizer: str
) -> None:
    out = tmp_path / "out"
    tokenize([folder], out, Settings(tokenizer, hidden=True), CorpusOptions())
    plan = read_json(out / PLAN, "")
    assert len(plan["inputs"]) == 5
    del plan["settings"]["hidden"]  # as plans were before
    (out / PLAN).write_text(json.dumps(plan))
    for mark in out.glob("groups/*.json"):
        mark.unlink()
    (out / "inventory.parquet").unlink()
    report = tokenize([folder], out, Settings(tokenizer), CorpusOptions())
    assert report is not None and report.lines == 5


def test_file_names_that_are_no_utf8_go_through_to_provenance(
    tmp_path: Path, tokenizer: str, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / ODD).write_text(ROW + "{\n")
    out = tmp_path / "out"
    assert tokenize_corpus.main([str(source), "--out", str(out), "--tokenizer", tokenizer]) == 0
    inventory = read_inventory(out)
    assert inventory.inputs == (ODD,)
    (shard,) = inventory.cells
    assert origin(out / shard.path, 0).file == ODD
    (problems,) = (out / "problems").iterdir()
    assert json.loads(problems.read_text())["file"] == ODD
    assert tokenize_corpus.main([str(source), "--out", str(out), "--tokenizer", tokenizer]) == 0
    assert inspect_shards.main(["show", str(out / shard.path), "0"]) == 0
    assert r"caf\udce9 \udcff.jsonl:1  id (none)" in capfd.readouterr().out


def test_cleaning_takes_file_names_that_are_no_utf8(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datatrove")
    from data_prep.clean import stages
    from data_prep.clean.files import read_documents

    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / ODD).write_text(ROW + "{\n")
    monkeypatch.setattr(stages, "run_local", in_this_process)
    options = ["--no-filters", "--keep-undetermined", "--tasks", "1"]
    command = ["run", f"web={source}", "--out", str(out), *options]
    assert clean_corpus.main(command) == 0
    (document,) = read_documents(out / "documents/00000.jsonl.zst")
    assert document.metadata["file"] == rf"{source}/caf\udce9 \udcff.jsonl"
    (problem,) = map(json.loads, (out / "problems.jsonl").open())
    assert (problem["file"], problem["line"]) == (document.metadata["file"], 2)
    assert clean_corpus.main(command) == 0  # the same command is known again
    assert (
        tokenize_corpus.main(
            [str(out / "documents"), "--out", str(tmp_path / "t"), "--tokenizer", tokenizer]
        )
        == 0
    )


def in_this_process(settings: Any, input_bytes: int, workers: int) -> None:
    from data_prep.clean import stages

    for stage in stages.stages(settings, input_bytes):
        for task in range(stage.tasks):
            data: Iterator[Any] | None = None
            for step in stage.pipeline:
                data = step(data, task, stage.tasks)
            assert list(data or ()) == []


def test_a_cleaning_that_began_with_hidden_files_goes_on_with_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datatrove")
    from data_prep.clean import plan
    from data_prep.clean.settings import SETTINGS, CleaningInput, CleanSettings

    given = CleanSettings((CleaningInput("web", str(folder)),), str(tmp_path / "out"))
    for settings, files in ((given, 1), (given.as_begun(), 1)):
        assert len(plan.find_files(settings)) == files
    old = CleanSettings((CleaningInput("web", str(folder)),), str(tmp_path / "out"), hidden=True)
    plan.begin(old, plan.find_files(old))
    content = json.loads(old.folder(SETTINGS).read_text())
    del content["hidden"]  # as settings were before
    old.folder(SETTINGS).write_text(json.dumps(content))
    going_on = given.as_begun()
    found = plan.find_files(going_on)
    assert len(found) == 5
    plan.begin(going_on, found)
    assert plan.input_bytes(found) == 5 * len(ROW)


def test_where_no_document_is_found_the_field_and_those_there_are_named(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "x", "url": "y"}\n')
    out = str(tmp_path / "out")
    assert tokenize_corpus.main([str(path), "--out", out, "--tokenizer", tokenizer]) == 2
    assert train_tokenizer.main([str(path), "--out", out + "t", "--vocab-size", "300"]) == 2
    error = capsys.readouterr().err
    assert error.count("a.jsonl:1: no field `text`; there are: content, url") == 2
    (tmp_path / "b").mkdir()
    (tmp_path / "b/x.pdf").touch()
    with pytest.raises(ConfigError, match=r"no documents in .*; not read .*1 \.pdf"):
        tokenize([tmp_path / "b"], tmp_path / "c", Settings(tokenizer), CorpusOptions())


def test_labels_are_shown_as_text(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a", "source": "[/red]\x1b[31m", "id": "\x1b[2J"}) + "\n")
    out = tmp_path / "out"
    assert tokenize_corpus.main([str(path), "--out", str(out), "--tokenizer", tokenizer]) == 0
    (shard,) = read_inventory(out).cells
    assert inspect_shards.main(["show", str(out / shard.path), "0"]) == 0
    printed = capsys.readouterr().out
    assert r"[/red]\x1b[31m" in printed and "\x1b" not in printed


def test_one_long_word_does_not_stall_the_training_of_a_tokenizer(tmp_path: Path) -> None:
    """A word of 100,000 letters costs no more than as many in words: by merges, not by a clock."""
    from data_prep.tokenizer import _LONGEST_WORD, _without_long_words

    plain = "the river meets the sea " * 100
    long = ["ab" * 50_000, " " * 100_000, "=" * 100_000, "_-" * 50_000, "河" * 100_000]
    for text in (plain + word + plain for word in long):
        pieces = _without_long_words(text)
        assert "".join(pieces) == text
        assert len(pieces) >= 100_000 // _LONGEST_WORD
        assert max(map(len, pieces)) <= _LONGEST_WORD + 2 * len(plain)
    assert _without_long_words(plain) == [plain]
    train([plain, *long], 600, tmp_path)
