"""The cluster of these tests is one: jobs run, queue, fail over and are judged before they run."""

import pytest
from cluster import wait_until

pytestmark = pytest.mark.slurm


def test_a_job_runs_on_two_nodes_that_its_names_lead_to(cluster, tmp_path):
    script = tmp_path / "job.sbatch"
    script.write_text(
        "#!/bin/bash\n"
        "srun bash -c 'echo \"$SLURM_PROCID $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES\"'\n"
        'scontrol show hostnames "$SLURM_JOB_NODELIST"\n'
    )
    options = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=2", "--output=%j.out")
    job = cluster.submit(*options, str(script), cwd=tmp_path)
    cluster.wait(job)
    first, second = cluster.job(job)["BatchHost"], cluster.nodes[1]
    lines = (tmp_path / f"{job}.out").read_text().splitlines()
    assert sorted(lines[:2]) == [f"0 {first} 0,1", f"1 {second} 0,1"]
    assert lines[2:] == [first, second]


def test_a_job_whose_node_dies_starts_again_on_another(cluster, tmp_path):
    options = ("--nodes=2", "--requeue", "--open-mode=append", "--output=%j.out")
    text = 'echo "$SLURM_JOB_NODELIST"; [ "${SLURM_RESTART_COUNT:-0}" = 1 ] || srun sleep 1000'
    job = cluster.submit(*options, "--wrap", text, cwd=tmp_path)
    out = tmp_path / f"{job}.out"
    wait_until(lambda: out.exists() and out.read_text(), 30, lambda: cluster.job(job))
    lost = cluster.nodes[1]
    cluster.fail_node(lost)
    try:
        cluster.wait(job)
    finally:
        cluster.restore_node(lost)
    assert "Node failure on 127.0.0.12" in out.read_text()
    nodes = [line for line in out.read_text().splitlines() if line.startswith("127")]
    assert nodes == ["127.0.0.[11-12]", "127.0.0.[11,13]"]


def test_a_job_too_large_for_its_partition_is_refused_before_it_queues(cluster):
    fits = ("--partition=big", "--nodes=32", "--gpus-per-node=8", "--wrap", "true")
    cluster.run("sbatch", "--test-only", *fits)
    with pytest.raises(AssertionError, match="node configuration is not available"):
        cluster.run("sbatch", "--test-only", *fits, "--gpus-per-node=9")
