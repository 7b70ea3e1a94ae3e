"""One run at a time in a folder, which all of its ranks see."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import broken
import chaos
import pytest
from ranks import run_ranks
from runs import arguments

from megatron_qwen3 import train
from megatron_qwen3.storage import lock
from megatron_qwen3.training import shared_folder

OWNER = "from megatron_qwen3.storage import lock; import sys, time\n"
OWNER += "with lock.owned(lock.Path(sys.argv[1])): print('owns', flush=True); time.sleep(60)"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return broken.corpus(tmp_path_factory.mktemp("corpus"))


def test_a_second_run_in_a_folder_is_refused_and_told_who_is_at_work_there(
    settings, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(train, "_QUIET_SECONDS", 0.1)
    monkeypatch.setattr(train, "_PATIENCE_SECONDS", 0.3)
    command = [sys.executable, "-c", OWNER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "owns\n"
        assert train.main(arguments(settings, tmp_path)) == 1
        owner.kill()
    waiting, refused = capsys.readouterr().err.splitlines()
    named = f"another run is at work in {tmp_path}/run (host {os.uname().nodename}, process"
    assert waiting.startswith(f"waiting up to 0.3 s: {named} {owner.pid})")
    assert refused.startswith(f"stopped: {named} {owner.pid})")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def test_a_rank_that_a_killed_run_left_behind_holds_the_folder_until_it_ends(settings, tmp_path):
    launch = chaos.Launch(arguments(settings, tmp_path), 2, str(tmp_path / "log.txt"))
    run_dir = tmp_path / "run"
    deadline = time.monotonic() + 60
    while not (run_dir / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        launch.signal(1, signal.SIGSTOP)
        launch.signal(0)
        launch.processes[0].join()
        with (
            pytest.raises(lock.InUse, match=f"process {launch.processes[0].pid}"),
            lock.owned(run_dir, patience_seconds=0.1),
        ):
            pass
    finally:
        launch.signal(1)
        launch.processes[1].join()
    with lock.owned(run_dir, patience_seconds=0.1):
        pass


def with_own_disks(arguments, home):
    """Every rank works in a folder of its own, as on nodes that share nothing."""
    shared_folder.check_shared.__defaults__ = (0.3,)
    disk = Path(home) / os.environ["RANK"]
    disk.mkdir()
    os.chdir(disk)
    with contextlib.redirect_stderr(io.StringIO()) as told:
        status = train.main(arguments)
    return status, told.getvalue(), sorted(path.name for path in disk.glob("runs/run/*"))


def test_a_run_folder_that_ranks_do_not_share_is_told_before_the_first_step(settings, tmp_path):
    asked = arguments(settings, "runs")
    (status, told, left), (other, nothing, none) = run_ranks(with_own_disks, 2, asked, tmp_path)
    assert (status, other, nothing) == (2, 2, "")
    host = os.uname().nodename
    assert told.startswith(f"error: run.dir: 1 ranks, on {host}, cannot write to runs/run where")
    assert f"rank 0 on {host} does; valid: a folder that all nodes share" in told
    assert left == ["lock"] and none == []


def test_a_run_whose_terminal_is_gone_trains_to_its_end(settings, tmp_path):
    """Nobody reads it after the first line, and its text has no characters of its own."""
    command = [sys.executable, "-m", "megatron_qwen3.train", *arguments(settings, tmp_path)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.getcwd()}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([*command, "train.steps=4"], env=environment, **streams) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(100) == 0
    assert [step for step, _ in chaos.losses(tmp_path / "run")] == [1, 2, 3, 4]
