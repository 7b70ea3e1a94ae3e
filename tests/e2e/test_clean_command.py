"""The command cleans a folder, goes on after a kill, and takes nothing half-written for whole."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("datatrove")

from data_prep.clean.settings import LOCK
from megatron_qwen3.cli import clean_corpus
from megatron_qwen3.storage.lock import owned

ROOT = Path(__file__).parents[2]
WORDS = ("river", "hill", "water", "mill", "meadow", "winter", "farmer", "village", "bridge")


def _command(folder: Path, out: str, *options: str) -> list[str]:
    command = [sys.executable, "tools/clean_corpus.py", "run", f"web={folder / 'in'}"]
    return [*command, "--out", str(folder / out), "--no-filters", *options]


def _clean(folder: Path, out: str, *options: str, **settings) -> subprocess.CompletedProcess:
    command = _command(folder, out, *options)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **settings)


def _result(out: Path) -> dict[str, bytes]:
    files = [*(out / "documents").iterdir(), *(out / "duplicates").iterdir(), out / "report.json"]
    return {file.name: file.read_bytes() for file in files}


@pytest.fixture
def corpus(tmp_path):
    """Documents of which one in ten repeats another."""
    generator = random.Random(0)
    (tmp_path / "in").mkdir()
    texts = [" ".join(generator.choices(WORDS, k=300)) for _ in range(300)]
    rows = [json.dumps({"id": str(k), "text": texts[k % 270]}) for k in range(300)]
    (tmp_path / "in/a.jsonl").write_text("\n".join(rows))
    return tmp_path


def test_a_killed_worker_ends_the_command_which_then_goes_on_to_the_same_result(corpus):
    done = _clean(corpus, "whole", "--tasks", "6", "--workers", "1")
    assert done.returncode == 0
    assert all(" left " in line for line in done.stderr.splitlines())  # of a slow machine's bar
    assert "270 of 300 documents kept" in done.stdout
    assert "ready for mq3 data tokenize" in done.stdout
    again = _command(corpus, "again", "--tasks", "6", "--workers", "2")
    process = subprocess.Popen(again, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    labelled = corpus / "again/work/labelled"
    while not (labelled.exists() and any(labelled.iterdir())):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(_workers(process.pid)[-1], signal.SIGKILL)
    message = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert "a worker was killed" in message and "Traceback" not in message
    assert not (corpus / "again/report.json").exists()
    done = _clean(corpus, "again", "--tasks", "6", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert _result(corpus / "again") == _result(corpus / "whole")


def _workers(parent: int) -> list[int]:
    """The processes that run tasks: children of the server that forks them."""
    children = psutil.Process(parent).children(recursive=True)
    return [child.pid for child in children if child.ppid() != parent]


def test_a_full_disk_stops_with_a_message_and_later_goes_on(corpus):
    def little_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = _clean(corpus, "out", "--tasks", "1", "--workers", "1", preexec_fn=little_space)
    assert done.returncode == 2
    assert "File too large; what is done is kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((corpus / "out").rglob("*.zst*"))
    done = _clean(corpus, "out", "--tasks", "1", "--workers", "1")
    assert done.returncode == 0, done.stderr


def test_mistakes_are_told_in_one_line(corpus, capsys):
    for arguments, message in (
        (("--tasks", "0"), "tasks = 0; at least 1 is needed"),
        (
            ("--memory-gb", "4", "group=9"),
            "--memory-gb group=9: no such stage; valid: label, equal",
        ),
        (("--hours", "groups=many"), "--hours groups=many: valid are a number, or STAGE=number"),
        (("--against", str(corpus)), f"against: {corpus} holds no cleaning that has ended"),
        (("--decontaminate-against", "none.jsonl"), "none.jsonl does not exist"),
        (("--text-field", "x", "--similarity", "0.1"), "similarity = 0.1"),
    ):
        assert clean_corpus.main(_command(corpus, "out", *arguments)[2:]) == 2
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1, told
    with pytest.raises(SystemExit) as stop:
        clean_corpus.main(_command(corpus, "out", "--languages", "english")[2:])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and "'english' is none of the 119" in told and told.count("\n") == 1
    assert not (corpus / "out").exists()


def _started(corpus: Path, out: str) -> tuple[subprocess.Popen, list[int]]:
    """A cleaning in the middle of its first stage, and its workers."""
    command = _command(corpus, out, "--tasks", "12", "--workers", "2")
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    labelled = corpus / out / "work/labelled"
    while not (labelled.exists() and any(labelled.iterdir())):
        assert process.poll() is None
        time.sleep(0.02)
    return process, _workers(process.pid)


def _all_end(processes: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while any(map(psutil.pid_exists, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(psutil.pid_exists, processes))


def test_workers_end_with_a_cleaning_that_is_killed_and_it_goes_on(corpus):
    process, workers = _started(corpus, "out")
    process.kill()
    process.communicate()
    assert workers and _all_end(workers)
    done = _clean(corpus, "out", "--tasks", "12", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "270 of 300 documents kept" in done.stdout


@pytest.mark.parametrize(
    "whom", ["the command", pytest.param("all its processes", marks=pytest.mark.slow)]
)
def test_sigterm_ends_a_cleaning_in_a_line(corpus, whom):
    process, workers = _started(corpus, "out")
    (os.kill if whom == "the command" else os.killpg)(process.pid, signal.SIGTERM)
    message = process.communicate(timeout=60)[1]
    assert (process.returncode, message) == (143, "stopped; the same command goes on\n")
    assert _all_end(workers)


@pytest.mark.slow  # a second one waits for what may be left of a killed one
def test_a_second_cleaning_in_a_folder_is_refused_by_name_of_the_first(corpus):
    with owned(corpus / "out", LOCK):
        done = _clean(corpus, "out", "--tasks", "2", "--workers", "1")
    assert done.returncode == 2
    assert f"another run is at work in {corpus / 'out'} (host " in done.stderr
    assert f"process {os.getpid()}" in done.stderr
    assert _clean(corpus, "out", "--tasks", "2", "--workers", "1").returncode == 0


def test_a_result_of_nothing_is_an_error_that_names_the_field(corpus):
    done = _clean(corpus, "out", "--tasks", "1", "--workers", "1", "--text-field", "content")
    assert done.returncode == 2
    assert "ready" not in done.stdout
    assert "not one of 0 documents was kept; the first problem: " in done.stderr
    assert "a.jsonl:1: no field `content`; there are: id, text" in done.stderr


def test_a_recipe_with_a_step_of_ones_own_is_followed_and_kept(corpus, monkeypatch):
    (corpus / "mine_of_this_test.py").write_text(
        "def every_other(document, rest):\n"
        "    return 'of the other half' if int(document.id) % 2 == rest else None\n"
    )
    (corpus / "mine.toml").write_text(
        'steps = ["normalize", "mine_of_this_test:every_other"]\n'
        '[options."mine_of_this_test:every_other"]\nrest = 1\n'
    )
    monkeypatch.setenv("PYTHONPATH", str(corpus))
    options = ("--workers", "2", "--recipe", str(corpus / "mine.toml"))
    done = _clean(corpus, "out", *options)
    assert done.returncode == 0, done.stderr
    report = json.loads((corpus / "out/report.json").read_text())
    outcomes = {outcome: count for _, _, outcome, count, _ in report["rows"]}
    assert outcomes == {"of the other half": 150, "kept": 135, "equal to another": 15}
    assert report["recipe"] == (corpus / "out/recipe.toml").read_text()
    assert "rest = 1" in report["recipe"]
    done = _clean(corpus, "out", *options, "--set", "similarity=0.9")
    assert done.returncode == 2 and "similarity was 0.75, is 0.9" in done.stderr
