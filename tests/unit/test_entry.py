"""Every command goes on, whatever becomes of the terminal, pipe or file that it prints to."""

import ast
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_qwen3 import train
from megatron_qwen3.cli import (
    build_dialogs,
    clean_corpus,
    commands,
    inspect_shards,
    mix_curriculum,
    scaling_study,
)

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from pathlib import Path
from megatron_qwen3 import entry

def main():
    Path(sys.argv[1]).open("w").write("file")
    from rich.console import Console
    from rich.table import Table
    table = Table(title="Größe → ½")
    table.add_row("a", "✓")
    for _ in range(int(sys.argv[2])):
        print("1e-3 → 2e-3, Größe")
        Console().print(table)
        print("→", file=sys.stderr, flush=True)
    Path(sys.argv[1]).open("a").write(", done")
    return 0 if sys.argv[3:] else 3

entry.run(main, prints_results=sys.argv[3:] == ["results"])
"""


def run_program(path, times=1, *more, **streams):
    command = [sys.executable, "-c", PROGRAM, str(path), str(times), *more]
    return subprocess.run(command, cwd=ROOT, check=False, timeout=60, **streams)


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "utf-8"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_encoding_without_the_characters_gets_them_spelled_out(tmp_path, encoding, unbuffered):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUNBUFFERED": unbuffered}
    done = run_program(tmp_path / "out", capture_output=True, env=environment)
    assert done.returncode == 3
    assert done.stdout.decode(encoding).startswith(
        {
            "ascii": "1e-3 \\u2192 2e-3, Gr\\xf6\\xdfe\n",
            "iso-8859-1": "1e-3 \\u2192 2e-3, Größe\n",
            "utf-8": "1e-3 → 2e-3, Größe\n",
        }[encoding]
    )
    assert (tmp_path / "out").read_text() == "file, done"


@pytest.mark.parametrize("times", [1, 200])
def test_a_reader_that_left_ends_nothing(tmp_path, times):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run_program(tmp_path / "out", times, stdout=writer, stderr=writer).returncode == 3
    finally:
        os.close(writer)
    assert (tmp_path / "out").read_text() == "file, done"


def test_a_full_disk_ends_nothing(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        assert run_program(tmp_path / "out", 50, stdout=full, stderr=full).returncode == 3
    assert (tmp_path / "out").read_text() == "file, done"


def test_results_that_a_full_disk_lost_are_no_success_and_those_that_nobody_reads_are(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        done = run_program(tmp_path / "out", 1, "results", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and (tmp_path / "out").read_text() == "file, done"
    assert done.stderr.endswith(b"error: standard output: No space left on device\n")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run_program(tmp_path / "out", 1, "results", stdout=writer).returncode == 0
    finally:
        os.close(writer)


def test_streams_that_were_closed_from_the_start_do_not_write_into_files(tmp_path):
    command = f"exec {sys.executable} -c '{PROGRAM}' {tmp_path}/out 3 <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=ROOT, check=False).returncode == 3
    assert (tmp_path / "out").read_text() == "file, done"


def test_a_pipe_that_does_not_wait_loses_nothing_to_a_slow_reader(tmp_path):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    slow = subprocess.Popen(
        [sys.executable, "-c", "import sys, time; time.sleep(0.5); print(len(sys.stdin.read()))"],
        stdin=reader,
        stdout=subprocess.PIPE,
    )
    os.close(reader)
    done = run_program(tmp_path / "out", 800, stdout=writer, stderr=subprocess.DEVNULL)
    os.close(writer)
    read = int(slow.communicate(timeout=30)[0])
    whole = run_program(tmp_path / "out", 800, capture_output=True).stdout.decode()
    assert done.returncode == 3 and read == len(whole) and len(whole.encode()) > 1 << 16


def test_every_command_of_the_project_starts_this_way():
    found = []
    for path in ROOT.glob("megatron_qwen3/**/*.py"):
        if path.name in ("reference.py", "template.py", "leash.py", "tries.py", "calls.py"):
            continue  # children of commands
        text = path.read_text(encoding="utf-8")
        if re.search(r"^if __name__ == .__main__.", text, re.M):
            body = ast.parse(text).body[-1]
            assert isinstance(body, ast.If), path
            # `start` is entry.run of what `mq3` was called with
            assert ast.unparse(body.body[-1]).startswith(("entry.run(", "start()")), path
            found.append(path.name)
    assert {"train.py", "__main__.py", "manifest.py", "config.py"} <= set(found)


def test_settings_may_stand_after_options_in_every_command_that_takes_them(capsys):
    model = ("model.preset=tiny-dense", "train.steps=1")
    assert train.main([*model, "--show", "optim.lr=0.25"]) == 0
    assert "lr = 0.25" in capsys.readouterr().out
    for command, size in (("memory", "--gpus=1"), ("dry-run", "--world-size=1")):
        with pytest.raises(SystemExit):
            scaling_study.main([command, *model, size, "--no-such-option"])
        told = scaling_study.main([command, *model, size, "optim.weigth_decay=1"])
        assert told == 2 and "did you mean optim.weight_decay?" in capsys.readouterr().err


def test_a_command_that_is_interrupted_says_so_in_a_line_without_a_traceback() -> None:
    program = """
import signal
from megatron_qwen3 import entry
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
entry.run(lambda: signal.raise_signal(signal.SIGINT))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


COMMANDS = [
    *((clean_corpus, name) for name in ("run", "show")),
    *((inspect_shards, name) for name in ("table", "show", "verify")),
    *((mix_curriculum, name) for name in ("show", "locate")),
    *((build_dialogs, name) for name in ("cold-start", "fusion", "distill", "teacher")),
]


@pytest.mark.parametrize(("tool", "name"), COMMANDS)
def test_help_of_a_command_shows_a_call_of_it(
    tool: Any, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tool.main([name, "--help"])
    (command,) = (words for words, one in commands.COMMANDS.items() if one.module == tool.__name__)
    assert f"mq3 {command} {name} " in capsys.readouterr().out


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_is_one_write_so_that_lines_of_ranks_do_not_run_into_each_other(
    tmp_path, unbuffered
):
    """Of a socket for datagrams each write is one; torchrun starts ranks with python -u."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered, "PYTHONIOENCODING": "utf-8"}
    with ours, theirs:
        program = run_program(
            tmp_path / "out", 3, stdout=subprocess.DEVNULL, stderr=theirs, env=environment
        )
        assert program.returncode == 3
        assert [ours.recv(100) for _ in range(3)] == ["→\n".encode()] * 3
