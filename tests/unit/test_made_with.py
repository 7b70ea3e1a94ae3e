"""A run that a curriculum feeds has the vocabulary and the tokenizer of its tokens."""

import json

import pytest

from megatron_qwen3 import config, made_with

WORDS = ["model.preset=qwen3-0.6b", "train.steps=1"]


@pytest.fixture
def curriculum(tmp_path):
    """Of 1,000 tokens; its shards lie in a folder beside it, with their tokenizer."""
    (tmp_path / "tokens" / "tokenizer").mkdir(parents=True)
    (tmp_path / "tokens" / "tokenizer" / "tokenizer.json").write_text("{}")
    content = {"folder": "tokens", "tokenizer": {"path": "tokenizer"}, "vocab_size": 1000}
    path = tmp_path / "curriculum.json"
    path.write_text(json.dumps(content))
    return path


def loaded(curriculum, *more):
    words = [*WORDS, f"data.curriculum={curriculum}", "data.stage=general", *more]
    return config.load([], words)


def test_both_are_taken_over(curriculum):
    found = loaded(curriculum)
    assert found.model.vocab_size == 1024 and found.model.num_layers == 28
    assert found.data.tokenizer == str(curriculum.parent / "tokens" / "tokenizer")


def test_what_is_told_holds(curriculum):
    found = loaded(curriculum, "model.vocab_size=2048", "data.tokenizer=")
    assert found.model.vocab_size == 2048 and found.data.tokenizer == ""


def test_a_saved_run_keeps_what_it_was_begun_with(curriculum, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    found = loaded(curriculum, "model.vocab_size=2048", "data.tokenizer=")
    (run / "config.toml").write_text(config.to_toml(found))
    assert config.load([run]) == found


def test_qwens_own_vocabulary_keeps_the_rows_of_its_embedding():
    assert [made_with.rows(n) for n in (151_643, 151_669, 151_936)] == [151_936] * 3
    assert [made_with.rows(n) for n in (1, 128, 129, 151_937)] == [128, 128, 256, 152_064]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tokenizer": 3, "vocab_size": "x"}'])
def test_a_file_that_is_no_curriculum_is_left_to_whoever_reads_it(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    assert made_with.defaults(str(tmp_path / "x.json")) == {}
    assert made_with.defaults("gone.json") == made_with.defaults("") == {}


def test_a_tokenizer_that_is_gone_is_not_named(curriculum):
    (curriculum.parent / "tokens" / "tokenizer" / "tokenizer.json").unlink()
    assert loaded(curriculum).data.tokenizer == "" and loaded(curriculum).model.vocab_size == 1024
