"""A tokenizer is trained on a sample that holds every language, by the command that people use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.tokenization import plan
from data_prep.tokenization.sample import Sample
from data_prep.tokenizer import DocumentTokenizer
from megatron_qwen3.config import ConfigError
from tools import train_tokenizer

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


def drawn(corpus: Path, exponent: float, sample_bytes: float = 5000, seed: int = 0) -> Sample:
    sample = Sample([corpus], {"language": "lang"}, sample_bytes, exponent, seed)
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
    sample = Sample([corpus], {"language": "lang"}, 1e6, read_bytes=4000)
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


def test_a_corpus_without_documents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "x"}')
    sample = Sample([tmp_path], {}, 1e6)
    with pytest.raises(ConfigError, match="no document; see --field"):
        sample.measure(lambda _: None)
