"""The ladder's study files: sweeps of sizes, and the one run that laws ask for."""

import sys

import pytest

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


def test_every_size_is_swept_over_rates_and_batches(tmp_path, monkeypatch):
    study = written(tmp_path, monkeypatch, "--sizes", "xs", "l")
    grids = study.stages[0].grids
    assert [grid.models for grid in grids] == [("xs",)] * 3 + [("l",)] * 3
    assert [grid.global_batch for grid in grids] == [(2,), (4,), (8,)] * 2
    assert grids[1].lr == (6e-3, 12e-3, 24e-3)
    assert grids[0].lr[1] == pytest.approx(12e-3 / 2**0.5, rel=1e-2)


def test_the_run_by_laws_has_their_rate_and_batch(tmp_path, monkeypatch):
    by = overlay(tmp_path, "[optim]\nlr = 3.1e-3\n[train]\nglobal_batch = 3\n")
    (grid,) = written(tmp_path, monkeypatch, "--sizes", "l", "--by", by).stages[0].grids
    assert (grid.lr, grid.global_batch) == ((3.1e-3,), (3,))


def test_without_a_law_of_the_batch_the_middle_one_stays(tmp_path, monkeypatch):
    by = overlay(tmp_path, "[optim]\nlr = 3.1e-3\n")
    (grid,) = written(tmp_path, monkeypatch, "--sizes", "l", "--by", by).stages[0].grids
    assert grid.global_batch == (4,)


def test_laws_without_a_rate_are_refused(tmp_path, monkeypatch):
    by = overlay(tmp_path, "[train]\nglobal_batch = 3\n")
    with pytest.raises(SystemExit, match="the ladder determined no rate"):
        written(tmp_path, monkeypatch, "--sizes", "l", "--by", by)
