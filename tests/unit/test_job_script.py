"""train.sbatch: its answer to the ranks' exit statuses and to signals, and how it calls them.

srun and scontrol are pretended here, so that every way a run can end takes milliseconds;
tests/slurm has the same script on a real SLURM.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
PRETENDED = {
    # Notes its arguments, then ends as the next line of `statuses` says, or waits for a signal.
    "srun": """#!/usr/bin/env bash
if [ "$1" = --help ]; then echo "$SRUN_HELP"; exit; fi
trap 'echo USR1 >> "$FOLDER/srun"; exit 75' USR1
trap 'exit 75' TERM
printf '%s\\n' "$@" "MASTER=$MASTER_ADDR:$MASTER_PORT" END >> "$FOLDER/srun"
read -r status < "$FOLDER/statuses"; sed -i 1d "$FOLDER/statuses"
if [ "$status" = sleep ]; then while true; do sleep 0.02; done; fi
exit "$status"
""",
    "scontrol": """#!/usr/bin/env bash
case $1 in hostnames | show) printf 'node7\\nnode8\\n' ;; *) echo "$@" >> "$FOLDER/scontrol" ;; esac
[ "$1" != requeue ] || exit "${REQUEUE_STATUS:-0}"
""",
}


class Job:
    """A job's script as SLURM starts it, with the notes of the pretended programs."""

    script = "train.sbatch"

    def __init__(self, folder, *statuses, arguments=("STAGE.toml", "run.name=a b"), **environment):
        self.folder = folder
        (folder / "bin").mkdir()
        for name, text in PRETENDED.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        (folder / "statuses").write_text("".join(f"{status}\n" for status in statuses))
        slurm = {
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "31234",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_NTASKS": "4",
            "QWEN3_VENV": sys.prefix,
            "FOLDER": str(folder),
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
        }
        self.process = subprocess.Popen(
            ["bash", str(ROOT / "examples/slurm" / self.script), *arguments],
            env=os.environ | slurm | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self):
        """Exit status and everything printed."""
        told, _ = self.process.communicate(timeout=200)
        return self.process.returncode, told

    def noted(self, name):
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def calls(self):
        """The arguments of every call of srun."""
        return [call.splitlines() for call in self.noted("srun").split("END\n")[:-1]]

    def send(self, number):
        """Signal the batch shell once the ranks run."""
        while not self.calls():
            time.sleep(0.01)
        self.process.send_signal(number)


def test_ranks_are_called_with_the_arguments_as_they_are(tmp_path):
    job = Job(tmp_path, 0)
    assert job.end()[0] == 0
    (call,) = job.calls()
    command = ["bash", "examples/slurm/rank.sh", "python", "-m", "megatron_qwen3.train"]
    assert call[-8:-1] == [*command, "STAGE.toml", "run.name=a b"]
    assert call[-1] == "MASTER=node7:21234"
    assert "--distribution=block" in call


class CommandJob(Job):
    script = "command.sbatch"


def test_a_command_gets_its_words_as_they_are(tmp_path):
    job = CommandJob(tmp_path, 2, arguments=("convert", "to-hf", "a b", "out"))
    assert job.end()[0] == 2
    assert job.calls()[0][-7:-1] == ["-m", "megatron_qwen3", "convert", "to-hf", "a b", "out"]


def test_a_task_of_an_array_takes_its_share_of_a_command_unless_another_is_typed(tmp_path):
    typed = ("data", "tokenize", "in", "--num-tasks", "64")
    task = {"SLURM_ARRAY_TASK_ID": "17", "SLURM_ARRAY_TASK_COUNT": "1"}
    job = CommandJob(tmp_path, 0, arguments=typed, **task)
    assert job.end()[0] == 0
    words = job.calls()[0][-8:-1]
    assert words == ["data", "tokenize", "--num-tasks=1", "--task-id=17", *typed[2:]]


def test_a_rank_has_slurms_numbers_under_torchs_names():
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    slurm = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}
    words = ["bash", ROOT / "examples/slurm/rank.sh", "printenv", *names]
    done = subprocess.run(words, env=os.environ | slurm, capture_output=True, text=True)
    assert done.stdout.split() == ["5", "1", "8"]


def test_a_run_that_dies_starts_again_as_often_as_it_may_each_time_at_another_port(tmp_path):
    job = Job(tmp_path, 137, 1, 1, 1, QWEN3_RESTARTS="2")
    status, told = job.end()
    assert status == 1 and "failed 3 times in this allocation (QWEN3_RESTARTS=2)" in told
    assert len({call[-1] for call in job.calls()}) == len(job.calls()) == 3
    assert job.noted("scontrol") == ""


def test_a_run_that_dies_once_can_still_end_well(tmp_path):
    job = Job(tmp_path, 137, 0)
    assert job.end()[0] == 0
    assert len(job.calls()) == 2


def test_a_wrong_setting_is_not_tried_again(tmp_path):
    job = Job(tmp_path, 2)
    assert job.end()[0] == 2
    assert len(job.calls()) == 1


def test_ranks_that_saved_and_left_put_the_job_back_into_the_queue(tmp_path):
    job = Job(tmp_path, 1, 75)
    assert job.end()[0] == 0
    assert job.noted("scontrol") == "requeue 31234\n"


def test_a_site_that_does_not_requeue_is_told_of(tmp_path):
    status, told = Job(tmp_path, 75, REQUEUE_STATUS="1").end()
    assert status == 75 and "submit it again and it goes on" in told


def test_a_job_without_time_to_train_does_not_go_round_for_ever(tmp_path):
    status, told = Job(tmp_path, 75, SLURM_RESTART_COUNT="1").end()
    assert status == 75 and "told to stop" in told and "--time must be much longer" in told


def test_usr1_reaches_the_ranks_and_then_the_job_goes_back_into_the_queue(tmp_path):
    job = Job(tmp_path, "sleep")
    job.send(signal.SIGUSR1)
    assert job.end()[0] == 0
    assert job.noted("srun").endswith("USR1\n")
    assert job.noted("scontrol") == "requeue 31234\n"


def test_a_cancelled_job_stays_out_of_the_queue(tmp_path):
    job = Job(tmp_path, "sleep")
    job.send(signal.SIGTERM)
    for step in psutil.Process(job.process.pid).children():  # SLURM tells the ranks, too
        step.terminate()
    assert job.end()[0] == 75
    assert job.noted("scontrol") == ""


def test_apptainer_runs_the_ranks_with_the_folders_that_they_need(tmp_path):
    (tmp_path / "site.sh").write_text(f'export PATH="$PATH:{tmp_path}/modules"\n')
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "apptainer").write_text("")
    (tmp_path / "modules" / "apptainer").chmod(0o755)
    site = {"QWEN3_SETUP": str(tmp_path / "site.sh"), "QWEN3_MOUNTS": "/data:/data"}
    image = tmp_path / "i m.sif"
    image.write_text("")
    job = Job(tmp_path, 0, QWEN3_CONTAINER=str(image), **site)
    assert job.end()[0] == 0
    words = job.calls()[0]
    start = words.index(f"{tmp_path}/modules/apptainer")
    options = ["exec", "--nv", "--pwd", str(ROOT), "--bind", f"{ROOT}:{ROOT},/data:/data"]
    assert words[start + 1 :][:9] == [*options, str(image), "bash", "examples/slurm/rank.sh"]


def test_pyxis_gets_image_and_mounts_as_options_of_srun(tmp_path):
    help_text = {"SRUN_HELP": "      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH"}
    job = Job(tmp_path, 0, QWEN3_CONTAINER="nvcr.io#nvidia/pytorch:25.10-py3", **help_text)
    assert job.end()[0] == 0
    options = set(job.calls()[0])
    assert "--container-image=nvcr.io#nvidia/pytorch:25.10-py3" in options
    assert {f"--container-mounts={ROOT}:{ROOT}", f"--container-workdir={ROOT}"} <= options


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"QWEN3_CONTAINER": "a.sqsh"}, "needs the Pyxis plugin"),
        ({"QWEN3_CONTAINER": "a.sif"}, "needs apptainer, which is not on PATH"),
        ({"QWEN3_CONTAINER": "a.sif", "QWEN3_RUNTIME": "docker"}, "not one of apptainer, pyxis"),
        ({"QWEN3_VENV": "/nowhere"}, "QWEN3_VENV = /nowhere has no bin/python"),
        ({"QWEN3_SETUP": "/nowhere"}, "QWEN3_SETUP = /nowhere is no file"),
        ({"SLURM_SUBMIT_DIR": "/"}, "/examples/slurm/environment.sh: No such file"),
        ({"QWEN3_CHECKOUT": "/nowhere"}, "/nowhere/examples/slurm/environment.sh: No such file"),
    ],
)
def test_an_environment_that_is_not_there_is_told(tmp_path, environment, told):
    job = Job(tmp_path, 0, **environment)
    status, text = job.end()
    assert status != 0 and told in text
    assert job.calls() == []
