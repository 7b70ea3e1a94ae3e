"""Jobs as users submit them, on a real SLURM: disturbed, they end as if they had not been.

Runs are a tiny model on made-up tokens, two nodes of one rank, over gloo. The losses of a disturbed
run must equal those of one that nothing happens to, to the bit.
"""

import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
from cluster import wait_until

from data_prep.indexed import IndexedWriter

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[2]
STEPS, SAVE_EVERY = 80, 20
STAGE = """
[model]
preset = "tiny-moe"
[data]
sequence_length = 64
held_out = 0.01
sources = [{{ name = "numbers", path = "{folder}/numbers" }}]
[train]
precision = "fp32"
steps = {steps}
global_batch = 8
[optim]
lr = 3e-3
[eval]
tokens = 128
[log]
tensorboard = false
[checkpoint]
every_steps = {every}
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A stage of `STEPS` steps and its data."""
    folder = tmp_path_factory.mktemp("corpus")
    with IndexedWriter(folder / "numbers", np.uint16) as writer:
        for first in np.random.default_rng(0).integers(0, 512, 400):
            writer.add_document((first + np.arange(100)) % 512)
    (folder / "stage.toml").write_text(STAGE.format(folder=folder, steps=STEPS, every=SAVE_EVERY))
    return folder / "stage.toml"


@pytest.fixture(scope="module")
def launch(cluster, stage):
    """launch(command, *arguments): the jobs that launch.py submits on two nodes, in order."""

    def launch(command, *arguments, ranks_per_node=1):
        options = (
            *(f"--venv={sys.prefix}", "--gres=none", "--cpus-per-task=1", "--nodes=2"),
            *(f"--gpus-per-node={ranks_per_node}", "--time=10:00", "--save-seconds=60"),
        )
        words = (sys.executable, "tools/launch.py", command, *arguments, *options)
        return [line.split()[0] for line in cluster.run(*words, cwd=ROOT).splitlines()]

    return launch


class JobRun:
    """A training job and its messages so far."""

    def __init__(self, cluster, launch, stage, folder, *more, ranks_per_node=1):
        settings = (str(stage), f"run.dir={folder}", "run.device=cpu", *more)
        (self.job,) = launch("train", *settings, ranks_per_node=ranks_per_node)
        self.cluster, self.folder = cluster, folder / "run"

    @property
    def log(self):
        path = self.folder / f"slurm-{self.job}.out"
        return path.read_text() if path.exists() else ""

    @property
    def losses(self):
        """(step, loss) of every step."""
        return losses(self.folder)

    def wait_for_step(self, step):
        wait_until(lambda: any(done >= step for done, _ in self.losses), 240, lambda: self.log)

    def wait(self):
        try:
            self.cluster.wait(self.job)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-8000:]}") from None


def losses(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(row["step"], row["loss"]) for row in map(json.loads, lines) if row["kind"] == "train"]


def ranks_of(run):
    """The processes of a run's ranks on this machine."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if f"run.dir={run.folder.parent}" in (process.info["cmdline"] or ())
        and "megatron_qwen3.train" in process.info["cmdline"]
        and process.info["cmdline"][0].endswith("python")
    ]


@pytest.fixture
def run(cluster, launch, stage, tmp_path):
    """A job that has just been submitted."""
    return JobRun(cluster, launch, stage, tmp_path)


@pytest.fixture(scope="module")
def undisturbed(cluster, launch, stage, tmp_path_factory):
    """A run that nothing happens to, at its end."""
    run = JobRun(cluster, launch, stage, tmp_path_factory.mktemp("undisturbed"))
    run.wait()
    return run


def test_two_nodes_train(undisturbed):
    assert [step for step, _ in undisturbed.losses] == list(range(1, STEPS + 1))
    assert undisturbed.losses[-1][1] < undisturbed.losses[0][1] - 1
    assert "start 1.0: 2 ranks on 127.0.0.[11-12]" in undisturbed.log


def test_a_signal_before_the_time_limit_saves_requeues_and_resumes(run, undisturbed, cluster):
    run.wait_for_step(SAVE_EVERY + 5)
    cluster.run("scancel", "--batch", "--signal=USR1", run.job)  # as --signal=B:USR1@… does
    run.wait()
    saved = [int(step) for step in re.findall(r"saved .*/step_(\d+)", run.log)]
    assert any(step % SAVE_EVERY for step in saved), f"saved only as ever: {saved}"
    assert cluster.job(run.job)["Restarts"] == "1"
    assert "start 2.0: 2 ranks" in run.log and "resumed from" in run.log
    assert run.losses == undisturbed.losses


def test_a_job_whose_node_dies_goes_on_elsewhere(run, undisturbed, cluster):
    run.wait_for_step(SAVE_EVERY + 5)
    lost = cluster.nodes[1]
    cluster.fail_node(lost)
    try:
        run.wait()
    finally:
        cluster.restore_node(lost)
    assert "start 2.0: 2 ranks on 127.0.0.[11,13]" in run.log
    assert f"resumed from {run.folder}/checkpoints/step_{SAVE_EVERY:08}" in run.log
    assert run.losses == undisturbed.losses


def test_a_rank_that_dies_is_started_again_within_the_allocation(run, undisturbed, cluster):
    run.wait_for_step(SAVE_EVERY + 5)
    ranks_of(run)[-1].kill()
    run.wait()
    assert cluster.job(run.job)["Restarts"] == "0"
    assert "the ranks ended with status" in run.log and "start 1.1: 2 ranks" in run.log
    assert run.losses == undisturbed.losses


def test_three_stages_run_one_after_the_other(cluster, launch, stage, tmp_path):
    short = ("train.steps=6", "run.device=cpu", f"run.dir={tmp_path}")
    chain = [
        word
        for name, before in (("one", ""), ("two", "{dir}/one"), ("three", "{dir}/two"))
        for word in ("--stage", str(stage), f"run.name={name}", f"checkpoint.init_from={before}")
    ]
    jobs = launch("chain", *short, *chain)
    for before, job in pairwise(jobs):
        assert f"afterok:{before}(unfulfilled)" in cluster.job(job)["Dependency"]
    for job in jobs:
        cluster.wait(job)
    ends = [losses(tmp_path / name) for name in ("one", "two", "three")]
    assert [len(end) for end in ends] == [6, 6, 6]
    assert ends[2][0][1] < ends[0][0][1]
    assert "weights from" in (tmp_path / "three" / f"slurm-{jobs[2]}.out").read_text()


def test_a_job_of_four_ranks_that_is_cancelled_does_not_come_back(cluster, launch, stage, tmp_path):
    run = JobRun(cluster, launch, stage, tmp_path, "parallel.tensor=2", ranks_per_node=2)
    run.wait_for_step(1)
    assert len(ranks_of(run)) == 4
    cluster.run("scancel", run.job)
    cluster.wait(run.job, "CANCELLED")
    wait_until(lambda: not ranks_of(run), 30, lambda: run.log)
    assert "goes back into the queue" not in run.log


def test_a_run_that_is_submitted_twice_does_not_write_twice(run, launch, stage, cluster):
    run.wait_for_step(1)
    (again,) = launch("train", str(stage), f"run.dir={run.folder.parent}", "run.device=cpu")
    assert cluster.job(again)["Dependency"] == "singleton(unfulfilled)"
    cluster.run("scancel", run.job, again)


def test_a_wrong_setting_ends_the_job_without_another_try(cluster, stage, tmp_path):
    options = ("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1", "--output=%j.out")
    words = ("examples/slurm/train.sbatch", str(stage), "optim.weigth_decay=1")
    environment = cluster.environment | {"QWEN3_VENV": sys.prefix, "QWEN3_CHECKOUT": str(ROOT)}
    script = f"{ROOT}/{words[0]}"
    job = cluster.submit(*options, script, *words[1:], cwd=tmp_path, env=environment)
    cluster.wait(job, "FAILED")
    assert cluster.job(job)["ExitCode"] == "2:0"
    assert (tmp_path / f"{job}.out").read_text().count("did you mean optim.weight_decay?") == 1


def test_every_models_job_fits_a_cluster_of_its_size(cluster):
    table = (ROOT / "examples/slurm/README.md").read_text()
    for model, nodes in re.findall(r"^\| `(qwen3_\S+\.toml)` \| (\d+) \|", table, re.MULTILINE):
        options = ("--test-only", "--partition=big", f"--nodes={nodes}", "--gpus-per-node=8")
        words = ("examples/stages/pretrain_1_general.toml", f"examples/models/{model}")
        cluster.run("sbatch", *options, str(ROOT / "examples/slurm/train.sbatch"), *words)
