"""A run of mode rl whose rollouts vLLM samples: the policy answers, also after a stop."""

import os

import broken
import pytest
import runs
from ranks import RankError, run_ranks
from serving import SECONDS, prepare, settings_of

from megatron_qwen3.posttrain.rollouts import record as records
from megatron_qwen3.posttrain.rollouts.record import RolloutRecord, folder_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(SECONDS)]


def run(asked, stop_at=0):
    """Train; killed in update `stop_at`, where it is not 0."""
    prepare()
    return runs.power_cut(asked, stop_at)


def test_a_run_goes_on_after_a_stop_and_its_servers_are_the_policy(python, tmp_path):
    (tmp_path / "tasks").mkdir()
    more = ["train.steps=4", "checkpoint.every_steps=1", "parallel.expert=2"]
    settings = [*broken.tasks(tmp_path / "tasks"), *more, *settings_of(python)]
    arguments = runs.arguments(settings, tmp_path)
    with pytest.raises(RankError, match="power cut"):
        run_ranks(run, 2, arguments, 4, timeout_seconds=SECONDS)
    before = {n: os.stat(folder_of(tmp_path / "run", n)) for n in records.batches(tmp_path / "run")}
    assert len(before) == 2
    assert run_ranks(run, 2, arguments, timeout_seconds=SECONDS) == [0, 0]
    found = runs.rows(tmp_path / "run")
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    for row in found[::2]:  # before the first update of each batch
        assert row["mismatch_max"] < 1e-4 and row["ratio"] == pytest.approx(1, abs=1e-5)
    for number, stat in before.items():
        folder = folder_of(tmp_path / "run", number)
        assert folder.stat().st_ino == stat.st_ino, "its rollouts were sampled again"
        assert (RolloutRecord.read(folder).versions_N2 == 2 * number).all()
    for row in runs.rows(tmp_path / "run", "rollouts"):
        assert row["refit/tensors"] > 50 and row["seconds/refit"] > 0
        assert row["refit/difference"] < 1e-4 and row["refit/restarts"] == 0
