"""Jobs of reinforcement learning on a real SLURM: nodes of ranks and a node of servers in one job.

Two nodes have a rank each, the third one a server: a stand-in for vLLM that computes the same
(`stand_in.py`). Disturbed, a job ends with the rewards and losses of one that was not.
"""

import json
import sys
from pathlib import Path

import broken
import psutil
import pytest
from cluster import wait_until

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[2]
STEPS = 16


def rows(folder, kind="train"):
    path = folder / "metrics.jsonl"
    found = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return [row for row in found if row["kind"] == kind]


class RlJob:
    """A job on three nodes, of which the last one serves."""

    def __init__(self, cluster, tasks, folder):
        self.cluster, self.folder = cluster, folder / "run"
        words = [sys.executable, "tools/launch.py", "train", *tasks, f"run.dir={folder}"]
        words += ["run.name=run", "model.preset=tiny-dense", "rollouts.engine=vllm"]
        words += [f"rollouts.vllm.python={ROOT}/tests/slurm/stand_in.py"]
        words += ["rollouts.vllm.start_seconds=120", "rollouts.max_new_tokens=6"]
        words += [f"--venv={sys.prefix}", "--gres=none", "--cpus-per-task=1", "--time=10:00"]
        words += ["--nodes=3", "--gpus-per-node=1", "--server-nodes=1", "--save-seconds=60"]
        told = cluster.run(*words, cwd=ROOT, env=cluster.environment | {"PYTHONPATH": str(ROOT)})
        self.job = told.split()[0]

    @property
    def log(self):
        path = self.folder / f"slurm-{self.job}.out"
        return path.read_text() if path.exists() else ""

    def wait_for_step(self, step):
        def came():
            return any(row["step"] >= step for row in rows(self.folder))

        wait_until(came, 240, lambda: self.log[-4000:])

    def wait(self):
        try:
            self.cluster.wait(self.job)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-8000:]}") from None

    @property
    def losses(self):
        return [(row["step"], row["loss"]) for row in rows(self.folder)]


def servers(job):
    """The processes of the stand-in that a job's server node started on this machine."""
    return [
        child
        for process in psutil.process_iter(["cmdline"])
        if f"run.dir={job.folder.parent}" in (process.info["cmdline"] or ())
        and "megatron_qwen3.posttrain.rollouts.serve" in process.info["cmdline"]
        for child in process.children(recursive=True)
        if any("stand_in.py" in word for word in child.cmdline())
    ]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Settings of a run of mode rl on a few tasks."""
    return broken.tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def undisturbed(cluster, tasks, tmp_path_factory):
    job = RlJob(cluster, tasks, tmp_path_factory.mktemp("undisturbed"))
    job.wait()
    return job


def test_ranks_train_on_what_servers_of_another_node_sample(undisturbed):
    assert [step for step, _ in undisturbed.losses] == list(range(1, STEPS + 1))
    assert "1 servers answer: 127.0.0.13:" in undisturbed.log
    assert "start 1.0: 2 ranks on 127.0.0.11,127.0.0.12" in undisturbed.log
    assert all(row["mismatch"] < 1e-4 for row in rows(undisturbed.folder))
    assert (undisturbed.folder / "vllm" / "127.0.0.13_0.log").exists()


def test_servers_are_gone_when_the_job_is(undisturbed):
    wait_until(lambda: not servers(undisturbed), 30, lambda: str(servers(undisturbed)))


def test_a_signal_before_the_time_limit_saves_requeues_and_resumes(
    cluster, tasks, undisturbed, tmp_path
):
    job = RlJob(cluster, tasks, tmp_path)
    job.wait_for_step(3)
    cluster.run("scancel", "--batch", "--signal=USR1", job.job)
    job.wait()
    assert cluster.job(job.job)["Restarts"] == "1"
    assert "start 2.0: 2 ranks" in job.log and "resumed from" in job.log
    assert job.log.count("1 servers answer") == 2
    assert job.losses == undisturbed.losses


def test_a_server_that_dies_is_started_again_and_the_run_goes_on(
    cluster, tasks, undisturbed, tmp_path
):
    job = RlJob(cluster, tasks, tmp_path)
    job.wait_for_step(3)
    found = servers(job)
    assert found
    for process in found:
        process.kill()
    job.wait()
    assert "started again: vLLM's server 0" in job.log
    assert "start 1.1" not in job.log
    assert job.losses == undisturbed.losses


def test_servers_that_do_not_start_end_the_job_with_the_reason(cluster, tasks, tmp_path):
    tasks = [*tasks, "rollouts.vllm.restarts=0"]
    script = tmp_path / "no_vllm"
    script.write_text("#!/bin/sh\necho no vLLM here >&2; exit 3\n")
    script.chmod(0o755)
    words = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--output=%j.out"]
    asked = [*tasks, f"run.dir={tmp_path}", "run.name=run", "rollouts.engine=vllm"]
    environment = cluster.environment | {"QWEN3_VENV": sys.prefix, "QWEN3_CHECKOUT": str(ROOT)}
    environment |= {"QWEN3_SERVER_NODES": "1", "PYTHONPATH": str(ROOT)}
    job = cluster.submit(
        *words,
        f"{ROOT}/examples/slurm/rl.sbatch",
        *asked,
        f"rollouts.vllm.python={script}",
        cwd=tmp_path,
        env=environment,
    )
    cluster.wait(job, "FAILED")
    log = (tmp_path / f"{job}.out").read_text()
    assert "no vLLM here" in log and "error: the servers ended with status 1" in log
