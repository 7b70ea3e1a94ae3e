"""A run of mode rl whose rollouts vLLM samples: the policy answers, also after a stop."""

import json
import os

import broken
import pytest
from ranks import RankError, run_ranks
from serving import CACHE_BYTES

from megatron_qwen3 import train
from megatron_qwen3.posttrain.rollouts import record as records
from megatron_qwen3.posttrain.rollouts.record import Record, folder_of
from megatron_qwen3.training import engine

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
SECONDS = 500


def run(arguments, stop_at=0):
    """Train; killed in update `stop_at`, where it is not 0."""
    train_step, done = engine.Engine.train_step, []

    def stopping(self, *args):
        done.append(None)
        if len(done) == stop_at:
            raise OSError("power cut")
        return train_step(self, *args)

    engine.Engine.train_step = stopping
    return train.main(arguments)


def rows(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "train"]


def test_a_run_goes_on_after_a_stop_and_its_servers_are_the_policy(python, tmp_path):
    (tmp_path / "tasks").mkdir()
    arguments = [
        *broken.tasks(tmp_path / "tasks"),
        f"run.dir={tmp_path}",
        "run.name=run",
        "train.steps=4",
        "checkpoint.every_steps=1",
        "parallel.expert=2",
        "rollouts.engine=vllm",
        f"rollouts.vllm.python={python}",
        f"rollouts.vllm.cache_bytes={CACHE_BYTES}",
    ]
    with pytest.raises(RankError, match="power cut"):
        run_ranks(run, 2, arguments, 4, timeout_seconds=SECONDS)
    before = {n: os.stat(folder_of(tmp_path / "run", n)) for n in records.batches(tmp_path / "run")}
    assert len(before) == 2
    assert run_ranks(run, 2, arguments, timeout_seconds=SECONDS) == [0, 0]
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    for row in found[::2]:  # before the first update of each batch
        assert row["mismatch_max"] < 1e-4 and row["ratio"] == pytest.approx(1, abs=1e-5)
    for number, stat in before.items():
        folder = folder_of(tmp_path / "run", number)
        assert folder.stat().st_ino == stat.st_ino, "its rollouts were sampled again"
        assert (Record.read(folder).versions_N2 == 2 * number).all()
