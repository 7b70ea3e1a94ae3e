"""The ladder's study files: sweeps of sizes, and the one run that a law asks for."""

import sys

from examples.reproduce import ladder
from megatron_qwen3.studies import ladder as ladders
from megatron_qwen3.studies.files import read


def written(tmp_path, monkeypatch, *options):
    out = tmp_path / "new" / "study.toml"
    where = ("--texts", "texts", "--dir", str(tmp_path / "runs"), "--out", str(out))
    monkeypatch.setattr(sys, "argv", ["ladder", *where, *options])
    ladder.main()
    return read(out, ladders.Ladder)


def overlay(tmp_path, text):
    file = tmp_path / "tuned.toml"
    file.write_text(text)
    return str(file)


def test_every_size_is_swept_over_rates(tmp_path, monkeypatch):
    study = written(tmp_path, monkeypatch, "--sizes", "xs", "l")
    small, large = study.stages[0].grids
    assert (small.models, large.models) == (("xs",), ("l",))
    assert small.lr == (5e-3, 10e-3, 20e-3, 40e-3)
    assert max(large.lr) < max(small.lr) and small.global_batch == large.global_batch


def test_factors_may_be_others(tmp_path, monkeypatch):
    (grid,) = written(tmp_path, monkeypatch, "--sizes", "m", "--factors", "1", "10").stages[0].grids
    assert grid.lr == (3e-3, 30e-3)


def test_the_run_by_the_law_has_its_rate(tmp_path, monkeypatch):
    by = overlay(tmp_path, "[optim]\nlr = 3.1e-3\nmin_lr = 3.1e-4\n")
    (grid,) = written(tmp_path, monkeypatch, "--sizes", "l", "--by", by).stages[0].grids
    assert grid.lr == (3.1e-3,)
