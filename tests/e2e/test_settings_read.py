"""Settings that a mode accepts are read by its run: none stands in a stage without any effect."""

import dataclasses
import sys
from pathlib import Path

import pytest
from broken import MODES
from ranks import run_ranks
from runs import arguments, run

from megatron_qwen3 import modes, settings

SAMPLE = ("rl", "distill")
TABLES = {
    "data": settings.DataConfig,
    "train": settings.TrainConfig,
    "eval": settings.EvalConfig,
}
# Whoever looks at all settings, because they are settings, does nothing with them.
_LOOKS_AT_ALL = ("config.py", "modes.py", "fields.py", "toml.py")
# What only a curriculum has, and what only reads a text that has no tokens yet.
_MAY_BE_UNREAD = {"pretrain": {"data.stage"}}


def read_by_a_run(given):
    """Names of the settings of `TABLES` that a run reads."""
    read = set()
    for table, kind in TABLES.items():
        names = {field.name for field in dataclasses.fields(kind)}

        def reading(self, name, table=table, names=names):
            file = Path(sys._getframe(1).f_code.co_filename)
            is_ours = "megatron_qwen3" in file.parts
            is_rule = file.name in _LOOKS_AT_ALL or file.name.startswith("validate")
            if name in names and is_ours and not is_rule:
                read.add(f"{table}.{name}")
            return object.__getattribute__(self, name)

        kind.__getattribute__ = reading
    assert run(given) == 0
    return read


@pytest.mark.parametrize(
    "mode",
    [mode if mode in SAMPLE else pytest.param(mode, marks=pytest.mark.slow) for mode in MODES],
)
def test_a_run_reads_every_setting_of_data_train_and_eval_that_its_mode_has(mode, tmp_path):
    (tmp_path / "set").mkdir()
    given = [x for x in MODES[mode](tmp_path / "set") if not x.startswith("train.steps")]
    length = "train.tokens=256" if modes.belongs("train.tokens", mode) else "train.steps=2"
    given += [length, "run.memory_check=off", "checkpoint.every_steps=0"]
    (read,) = run_ranks(read_by_a_run, 1, arguments(given, tmp_path))
    accepted = {
        f"{table}.{field.name}"
        for table, kind in TABLES.items()
        for field in dataclasses.fields(kind)
    }
    accepted = {name for name in accepted if modes.belongs(name, mode)}
    assert accepted - read <= _MAY_BE_UNREAD.get(mode, set())
