"""Files that are nested beyond all measure, or of a later version, are named in a line."""

import pytest

from data_prep import curriculum
from data_prep.mixing import recipe
from megatron_qwen3 import config
from megatron_qwen3.config import ConfigError
from megatron_qwen3.planner import hardware
from megatron_qwen3.pretrain.record import RunRecord
from megatron_qwen3.studies import files
from megatron_qwen3.training import guard
from megatron_qwen3.training.history import RunHistory
from megatron_qwen3.training.metrics_file import MetricsError, read_rows

DEEP = "[" * 100_000
READERS = {
    "curriculum.json": curriculum.read,
    "recipe.toml": recipe.load,
    "config.toml": lambda path: config.load([path]),
    "cluster.toml": lambda path: hardware._read(str(path), ()),
    "study.toml": lambda path: files.read(path, object),
    "data.json": lambda path: RunRecord.read(path.parent),
    "left_out.jsonl": guard._read,
    "metrics.jsonl": lambda path: list(read_rows(path)),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_nested_without_end_is_named(tmp_path, name):
    path = tmp_path / name
    begin = "a = " if name.endswith(".toml") else ""
    path.write_text(f"{begin}{DEEP}\n{{}}\n{{}}\n")
    with pytest.raises(ConfigError, match=name):
        READERS[name](path)


def test_a_record_of_a_later_version_is_refused_by_it(tmp_path):
    (tmp_path / "data.json").write_text('{"version": 5, "sources": {}, "parts": [], "idle": {}}')
    with pytest.raises(ConfigError, match="data.json is of version 5; known: 1 to 4"):
        RunRecord.read(tmp_path)


def test_a_setting_that_is_nested_without_end_is_named():
    with pytest.raises(ConfigError, match=r"data\.sources is not valid TOML"):
        config.load([], [f"data.sources={DEEP}"])


@pytest.mark.parametrize("value", ['"a"', "[1]", "true", "1" + "0" * 400])
def test_a_metric_that_is_no_number_is_named(tmp_path, value):
    row = '{"kind": "train", "step": 1, "loss": VALUE}\n'
    (tmp_path / "metrics.jsonl").write_text(row.replace("VALUE", value))
    with pytest.raises(MetricsError, match=r"metrics\.jsonl: loss = .* is no number"):
        RunHistory.read(tmp_path)
