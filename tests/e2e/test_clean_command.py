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
    assert (done.returncode, done.stderr) == (0, "")
    assert "270 of 300 documents kept" in done.stdout
    assert "ready for tools/tokenize_corpus.py" in done.stdout
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
    assert "File too large; with space, the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((corpus / "out").rglob("*.zst*"))
    done = _clean(corpus, "out", "--tasks", "1", "--workers", "1")
    assert done.returncode == 0, done.stderr


def test_mistakes_are_told_in_one_line(corpus):
    for arguments, message in (
        (("--tasks", "0"), "tasks = 0; at least 1 is needed"),
        (("--languages", "english"), "'english' is none of the 119"),
        (("--evaluation", "none.jsonl"), "none.jsonl does not exist"),
        (("--text-field", "x", "--resemblance", "0.1"), "resemblance = 0.1"),
    ):
        done = _clean(corpus, "out", *arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert not (corpus / "out").exists()
