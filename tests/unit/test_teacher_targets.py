"""mq3 data build teacher: errors before a teacher is asked, and its files."""

import argparse
import hashlib

import numpy as np
import pytest
from test_endpoint_teacher import VOCABULARY, log_p_after, served

from megatron_qwen3.cli import teacher_targets
from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.teachers.teacher_set import TeacherSet, trained_labels
from tests.dialog_sets import random_samples, write_set


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def dialogs(tmp_path, tokenizer):
    sha256 = hashlib.sha256(b"{}").hexdigest()
    samples = random_samples(8, vocab_size=VOCABULARY, longest=9)
    return write_set(tmp_path / "chat", samples, vocab_size=VOCABULARY, tokenizer=sha256)


def run(dialogs, *arguments):
    parser = argparse.ArgumentParser()
    teacher_targets.add_arguments(parser)
    return teacher_targets.run(parser.parse_args([dialogs.prefix, *map(str, arguments)]))


def test_what_an_endpoint_says_lies_beside_the_set(dialogs, tokenizer, capsys):
    with served() as (address, _):
        asked = ("--teacher", address, "--teacher-tokenizer", tokenizer, "--top-k", 3)
        assert run(dialogs, *asked) == 0
        with pytest.raises(ConfigError, match="chat.teacher exists; remove it"):
            run(dialogs, *asked)
    assert "3 ids of each trained token of 8 samples" in capsys.readouterr().out
    found = TeacherSet(dialogs)
    assert found.teacher == f"{address}#big"
    for n in range(len(dialogs)):
        sample = dialogs.read(n)
        for label, ids in zip(trained_labels(sample), found.read(n, 3).ids, strict=True):
            log_p = log_p_after(sample.ids[: label + 1].tolist())
            assert ids.tolist() == np.argsort(-log_p)[:3].tolist()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--teacher", "http://x/v1"], "says nothing of its tokenizer: name the folder"),
        (
            ["--teacher", "http://x/v1", "--temperature", "2", "--teacher-tokenizer", "."],
            "temperature 1 alone",
        ),
        (["--teacher", "http://x/v1", "--teacher-tokenizer", "/"], "its tokenizer is unknown"),
        (["--teacher", "/nowhere"], "no folder|no checkpoint"),
        (["--teacher", "http://x/v1", "--top-k", "0"], "top_k = 0; valid: at least 1"),
    ],
)
def test_what_cannot_be_a_teacher_is_refused_in_a_line(dialogs, arguments, says):
    with pytest.raises(ConfigError, match=says):
        run(dialogs, *arguments)


def test_a_teacher_with_another_tokenizer_is_refused(dialogs, tmp_path):
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(ConfigError, match="has another tokenizer .* than .*chat was tokenized"):
        run(dialogs, "--teacher", "http://x/v1", "--teacher-tokenizer", tmp_path)


def test_pairs_have_no_targets(tmp_path):
    pairs = write_set(tmp_path / "pairs", random_samples(4), kind="pairs")
    with pytest.raises(ConfigError, match="holds pairs; a teacher scores dialogs"):
        run(pairs, "--teacher", "http://x/v1")


def test_a_reply_may_be_as_long_as_scores_of_a_long_sample_are(dialogs):
    parser = argparse.ArgumentParser()
    teacher_targets.add_arguments(parser)
    given = parser.parse_args([dialogs.prefix, "--teacher", "http://x/v1"])
    assert (given.most_bytes, given.concurrency) == (1 << 30, 4)
    assert f"({1 << 30})" in parser.format_help()
