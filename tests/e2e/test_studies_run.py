"""Studies on real ranks: points are trained, not trained twice, and reported."""

import json
import random

import numpy as np
import pytest

from data_prep import tokenizer
from data_prep.indexed import IndexedWriter
from megatron_qwen3.cli import scaling_study

BASE = """
[run]
device = "cpu"
[data]
sequence_length = 32
held_out = {held_out}
sources = [{{ name = "words", path = "{folder}/words" }}]
[train]
precision = "fp32"
[eval]
tokens = 512
[log]
tensorboard = false
"""
SWEEP = """
dir = "{folder}/sweep"
settings = ["{folder}/base.toml", "model.vocab_size=300"]
gpus = {gpus}
scaling = ["weak"]
sequences_per_gpu = 2
steps = 4
warm_up_steps = 1
[models]
dense = ["model.preset=tiny-dense"]
[layouts]
data = []
"""
LADDER = """
dir = "{folder}/ladder"
[models]
a = ["model.preset=tiny-dense", "model.vocab_size=300", "model.hidden_size=16"]
b = ["model.preset=tiny-dense", "model.vocab_size=300", "model.hidden_size=32"]
c = ["model.preset=tiny-dense", "model.vocab_size=300", "model.hidden_size=64"]
[[stages]]
name = "one"
settings = ["{folder}/base.toml"]
grids = [{{ tokens = [512, 1024, 2048], lr = [1e-2], global_batch = [4] }}]
[[stages]]
name = "two"
settings = ["{folder}/base.toml"]
after = "one"
grids = [{{ models = ["a"], tokens = [512], lr = [1e-3, 3e-3, 1e-2], global_batch = [4] }},
    {{ models = ["b"], tokens = [512], lr = [1e-3, 3e-3, 1e-2], global_batch = [4] }}]
"""


@pytest.fixture
def folder(tmp_path):
    """A source of random words, and files that name it."""
    words = random.Random(0)
    texts = [" ".join(words.choices(["the", "cat", "sat", "on"], k=60)) for _ in range(90)]
    tokenizer.train(texts, 300, tmp_path / "tokenizer")
    encoder = tokenizer.DocumentTokenizer(tmp_path / "tokenizer")
    with IndexedWriter(tmp_path / "words", np.uint16) as writer:
        for ids in encoder.encode_documents(texts):
            writer.add_document(np.array(ids))
    return tmp_path


def write(folder, text, held_out=0, **values):
    (folder / "base.toml").write_text(BASE.format(folder=folder, held_out=held_out))
    (folder / "study.toml").write_text(text.format(folder=folder, **values))
    return str(folder / "study.toml")


def sweep(folder, gpus, capfd):
    file = write(folder, SWEEP, gpus=gpus)
    assert scaling_study.main(["sweep", file, "--local", "--json"]) == 0
    out, err = capfd.readouterr()
    (curve,) = json.loads(out)["curves"]
    return curve, err


@pytest.mark.parametrize("gpus", [[1], pytest.param([1, 2], marks=pytest.mark.slow)])
def test_a_sweep_runs_real_ranks_once_and_is_reported(folder, capfd, gpus):
    curve, err = sweep(folder, gpus, capfd)
    assert [row["gpus"] for row in curve["rows"]] == gpus
    assert [row["global_batch"] for row in curve["rows"]] == [2 * count for count in gpus]
    assert curve["rows"][0]["efficiency"] == 1.0
    points = len(gpus)
    assert f"{points}/{points}  dense-data-{gpus[-1]}gpu-{2 * gpus[-1]}" in err
    assert (folder / "sweep" / "scaling.html").exists()
    assert not list((folder / "sweep").rglob("checkpoints"))  # steps are measured, nothing is kept
    again, err = sweep(folder, gpus, capfd)
    assert again == curve
    assert f"{points} point" in err and f"{points} of them done before" in err


@pytest.mark.slow
def test_a_sweep_reaches_eight_ranks(folder, capfd):
    curve, _ = sweep(folder, [1, 2, 4, 8], capfd)
    assert [row["gpus"] for row in curve["rows"]] == [1, 2, 4, 8]
    assert curve["law"]
    assert curve["held_out_error"] is not None


@pytest.mark.slow
def test_a_ladder_of_two_stages_runs_and_is_fitted(folder, capfd):
    file = write(folder, LADDER, held_out=0.2)
    options = ["--json", "--draws", "3", "--model", "0.6b", "--tokens", "1e9"]
    assert scaling_study.main(["laws", "run", file, *options]) == 0
    report = json.loads(capfd.readouterr().out)
    one, two = report["stages"]
    assert (one["stage"], len(one["runs"])) == ("one", 9)
    assert one["loss_law"]["E"] > 0
    assert (two["stage"], len(two["runs"])) == ("two", 6)
    assert len(report["advice"]) == 2
    assert min(run["loss"] for run in two["runs"]) < max(run["loss"] for run in one["runs"])
    assert (folder / "ladder" / "laws.html").exists()
