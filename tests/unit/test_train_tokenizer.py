"""A tokenizer is trained on a sample that holds every language, by the command that people use."""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from data_prep.tokenization import plan
from data_prep.tokenization.sample import DocumentSample
from data_prep.tokenizer import DocumentTokenizer
from megatron_qwen3.cli import train_tokenizer
from megatron_qwen3.config import ConfigError

SIZES = {"eng_Latn": 4000, "deu_Latn": 400, "rus_Cyrl": 40}  # documents


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for language, count in SIZES.items():
        rows = (f"{k} слова" if language == "rus_Cyrl" else f"word {k} words" for k in range(count))
        lines = [json.dumps({"text": text, "lang": language}) for text in rows]
        (folder / f"{language}.jsonl").write_text("\n".join([*lines, "broken"]))
    return folder


def drawn(
    corpus: Path, exponent: float, sample_bytes: float = 5000, seed: int = 0
) -> DocumentSample:
    sample = DocumentSample([corpus], {"language": "lang"}, sample_bytes, exponent, seed)
    sample.measure(lambda _: None)
    list(sample.texts(lambda _: None))
    return sample


def test_an_exponent_of_1_samples_as_the_corpus_is_and_0_gives_all_alike(corpus: Path) -> None:
    available = drawn(corpus, 1).available
    natural, alike = (drawn(corpus, exponent).sampled for exponent in (1, 0))
    assert natural["eng_Latn"] / natural["deu_Latn"] == pytest.approx(10, rel=0.5)
    assert alike["rus_Cyrl"] == available["rus_Cyrl"]  # all that there is
    assert alike["eng_Latn"] == pytest.approx(alike["deu_Latn"], rel=0.25)
    assert sum(alike.values()) == pytest.approx(5000, rel=0.1)


def test_a_sample_is_repeatable_and_depends_on_the_seed(corpus: Path) -> None:
    samples = [
        list(sample.texts(lambda _: None))
        for sample in (drawn(corpus, 0.5), drawn(corpus, 0.5), drawn(corpus, 0.5, seed=1))
    ]
    assert samples[0] == samples[1] != samples[2]


def test_the_beginning_of_every_file_is_read_before_the_rest_of_any(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "UNIT_BYTES", 1000)
    sample = DocumentSample([corpus], {"language": "lang"}, 1e6, read_bytes=4000)
    sample.measure(lambda _: None)
    assert sample.available.keys() == SIZES.keys()
    assert sample.num_bytes <= 5000


def test_the_command_writes_a_tokenizer_and_prints_what_it_saw(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokenizer"
    command = [str(corpus), "--out", str(out), "--vocab-size", "290", "--field", "language=lang"]
    assert train_tokenizer.main(command) == 0
    assert DocumentTokenizer(out).vocab_size == 290
    assert "rus_Cyrl" in capsys.readouterr().out
    assert train_tokenizer.main(command) == 2
    assert "holds a tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vocab-size", "10"], "vocab_size = 10 .*valid: at least 282"),
        (["--sample-mb", "0"], "--sample-mb = 0; valid: a number of at least 1e-06"),
        (["--sample-mb", "nan"], "--sample-mb = nan"),
        (["--read-gb", "-1"], "--read-gb = -1"),
        (["--exponent", "-1"], "--exponent = -1; valid: 0 or more"),
        (["--field", "txt=content"], "txt is unknown; valid: text"),
        (["--field", "text=id"], "text and id would both be read from the field id"),
        (["--out", "{file}"], "File exists: '{file}'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_read(
    corpus: Path, tmp_path: Path, capsys: Any, options: list[str], message: str
) -> None:
    file, out = str(next(corpus.iterdir())), tmp_path / "tokenizer"
    given = [option.format(file=file) for option in options]
    command = [str(corpus), "--out", str(out), "--vocab-size", "290", *given]
    assert train_tokenizer.main(command) == 2
    assert re.search(f"^error: .*{message.format(file=file)}", capsys.readouterr().err)
    assert not out.exists()


def test_a_tokenizer_that_cannot_be_written_leaves_none(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    command = [str(corpus), "--out", str(tmp_path / "tokenizer"), "--vocab-size", "290"]
    assert train_tokenizer.main(command) == 2
    assert "error: [Errno 28] No space left" in capsys.readouterr().err
    assert not (tmp_path / "tokenizer/tokenizer.json").exists()


def test_a_corpus_without_documents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "x"}')
    sample = DocumentSample([tmp_path], {}, 1e6)
    with pytest.raises(ConfigError, match="no document; see --field"):
        sample.measure(lambda _: None)
