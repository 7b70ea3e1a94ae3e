"""Programs in the sandbox: their output, how they end, and that they leave nothing behind."""

import functools
import os
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from pathlib import Path

import psutil
import pytest

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.sandbox import (
    ProgramLimits,
    Sandbox,
    launch,
    pool,
    probe,
    process,
    seccomp,
)
from tests.sandboxes import needs_sandbox


@pytest.fixture(scope="module")
def sandbox():
    with needs_sandbox(), Sandbox(ProgramLimits(seconds=30), workers=2) as it:
        yield it


@pytest.mark.parametrize(
    ("program", "stdin", "stdout", "status"),
    [
        ("print(int(input()) + 1)", "41", "42\n", 0),
        ("import sys; sys.stdout.write(sys.stdin.read())", "a\nß\n", "a\nß\n", 0),
        ("print('x'); exit(3)", "", "x\n", 3),
        ("import sys; print(sys.argv, __name__)", "", "['/program.py'] __main__\n", 0),
        ("raise ValueError('no')", "", "", 1),
        ("def f(:", "", "", 1),
        ("import os; os._exit(5)", "", "", 5),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "", "", 137),
        ("import sys; sys.stdout.buffer.write(b'\\xff')", "", "\ufffd", 0),
        ("print(input(), flush=True)", "\x00", "\x00\n", 0),
        ("print('\ud800')", "", "?\n", 0),
        ("", "", "", 0),
    ],
)
def test_a_program_runs_as_python_would_run_it(sandbox, program, stdin, stdout, status):
    outcome = sandbox.run(program, stdin)
    assert (outcome.stdout, outcome.status) == (stdout, status), outcome
    assert not outcome.failure and not outcome.killed_by and outcome.seconds > 0


def test_a_fault_is_told_with_its_line(sandbox):
    outcome = sandbox.run("x = 1\nraise KeyError('here')")
    assert 'File "/program.py", line 2' in outcome.stderr and "KeyError: 'here'" in outcome.stderr


def test_nothing_but_the_standard_library_is_imported_and_nothing_of_ours(sandbox):
    for module in ("numpy", "megatron_qwen3", "torch", "pip"):
        assert "ModuleNotFoundError" in sandbox.run(f"import {module}").stderr
    listed = sandbox.run("import os, sys; print(os.listdir('.'), '' in sys.path, '.' in sys.path)")
    assert listed.stdout == "[] False False\n"
    beside = "open('json.py', 'w').write('x = 1'); import json; print(hasattr(json, 'x'))"
    assert sandbox.run(beside).stdout == "False\n"


def test_input_that_is_longer_than_pipes_and_never_read_is_no_trouble(sandbox):
    text = "x" * (1 << 20)
    assert sandbox.run("print(len(input()))", text).stdout == f"{1 << 20}\n"
    assert sandbox.run("print(1)", text).stdout == "1\n"
    assert sandbox.run("import os; os.close(0); print(2)", text).stdout == "2\n"


def test_the_same_program_gives_the_same_again(sandbox):
    """Sets of texts have the order of their hashes."""
    told = {sandbox.run(f"# {k}\nprint({{'a', 'b', 'c', 'd', 'e'}})").stdout for k in range(3)}
    assert len(told) == 1


def test_a_result_is_remembered_and_a_time_out_is_not(sandbox):
    random = "import os; print(os.urandom(8))"
    assert sandbox.run(random) is sandbox.run(random)
    assert sandbox.run(random, "1").stdout != sandbox.run(random, "2").stdout
    waits, short = "import time; time.sleep(60)", ProgramLimits(seconds=0.5)
    assert sandbox.run(waits, limits=short) is not sandbox.run(waits, limits=short)


def test_what_is_remembered_has_a_limit(monkeypatch):
    cache = pool._Cache(3000)
    outcomes = [pool.ProgramOutcome(0, "x" * 50, "", 1.0) for _ in range(100)]
    for number, outcome in enumerate(outcomes):
        cache.put(bytes([number]), outcome)
    kept = [number for number in range(100) if cache.get(bytes([number])) is outcomes[number]]
    assert kept == [96, 97, 98, 99]


def test_programs_run_at_once_and_their_results_stay_in_order(sandbox):
    jobs = [(f"import time; time.sleep(0.1); print({k})", "") for k in range(8)]
    assert [outcome.stdout for outcome in sandbox.run_all(jobs)] == [f"{k}\n" for k in range(8)]


def test_closing_ends_what_runs(sandbox):
    """And gives its thread back; the program has no result then."""
    outcomes = []
    with Sandbox(ProgramLimits(seconds=100), workers=1) as other:
        run = lambda: outcomes.append(other.run("import time; time.sleep(90)"))  # noqa: E731
        thread = threading.Thread(target=run)
        thread.start()
        _wait(lambda: _bubbles(os.getpid()))
    thread.join(30)
    assert not thread.is_alive() and outcomes[0].status is None
    assert outcomes[0].killed_by == "closed" or outcomes[0].failure
    _wait(lambda: not _bubbles(os.getpid()))


def test_a_program_that_the_sandbox_could_not_start_is_no_program_that_failed(sandbox, monkeypatch):
    monkeypatch.setattr(
        launch.Launcher, "command", lambda *_: ["/bin/sh", "-c", "echo no room >&2; exit 1"]
    )
    outcome = sandbox.run("print('not started')")
    assert (outcome.status, outcome.failure) == (None, "no room")
    monkeypatch.setattr(launch.Launcher, "command", lambda *_: ["/nowhere"])
    assert "No such file" in sandbox.run("print('not started')").failure
    monkeypatch.setattr(launch.Launcher, "command", lambda *_: ["/bin/sleep", "60"])
    monkeypatch.setattr(process, "_START_SECONDS", 0.2)
    outcome = sandbox.run("print('slow')")
    assert outcome.failure == "time before the program began"


def test_a_program_that_cannot_be_watched_does_not_live_on(sandbox, monkeypatch):
    """As where no descriptor is left."""

    def fails(*_):
        raise OSError("Too many open files")

    monkeypatch.setattr(os, "pidfd_open", fails)
    outcome = sandbox.run("import time; time.sleep(600)")
    assert (outcome.status, outcome.failure) == (None, "Too many open files")
    _wait(lambda: not _bubbles(os.getpid()))


def test_kill_9_of_our_process_leaves_no_sandbox(tmp_path):
    with needs_sandbox():
        source = """
            from megatron_qwen3.posttrain.sandbox import ProgramLimits, Sandbox
            forks = "import os, time, signal\\nos.fork()\\nif not os.fork(): os.setsid()\\n"
            forks += "signal.signal(15, signal.SIG_IGN)\\ntime.sleep(300)"
            with Sandbox(ProgramLimits(seconds=300), workers=1) as sandbox:
                print("ready", flush=True)
                sandbox.run(forks)
        """
        ours = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(source)], stdout=subprocess.PIPE, text=True
        )
        assert ours.stdout is not None and ours.stdout.readline() == "ready\n"
        _wait(lambda: len(psutil.Process(ours.pid).children(recursive=True)) >= 6)
        inside = psutil.Process(ours.pid).children(recursive=True)
        ours.send_signal(signal.SIGKILL)
        ours.wait()
        _wait(lambda: not any(_is_alive(one) for one in inside))


@pytest.mark.parametrize("missing", ["bwrap", "prlimit"])
def test_a_machine_without_the_tools_is_refused_in_one_line(monkeypatch, missing):
    which = launch.shutil.which
    monkeypatch.setattr(
        launch.shutil,
        "which",
        lambda name, path: None if name == missing else which(name, path=path) or f"/usr/{name}",
    )
    monkeypatch.setattr(launch, "_python", lambda start: ("/usr/bin/python3", ""))
    with pytest.raises(ConfigError, match=f"needs {missing}.*apt-get install") as error:
        Sandbox().__enter__()
    assert "\n" not in str(error.value)


def test_a_machine_without_user_namespaces_is_refused_and_nothing_is_run(monkeypatch):
    with needs_sandbox():
        fake = lambda *_: ["/bin/sh", "-c", "echo bwrap: No permissions >&2; exit 1"]  # noqa: E731
        monkeypatch.setattr(launch.Launcher, "command", fake)
        with pytest.raises(ConfigError, match="No permissions.*unshare -Ur true") as error:
            Sandbox().__enter__()
        assert "\n" not in str(error.value)


def _opened(monkeypatch, change):
    """The command with a wall taken down."""
    command = launch.Launcher.command

    def changed(self, *arguments):
        return change(command(self, *arguments))

    monkeypatch.setattr(launch.Launcher, "command", changed)


def _limit_gone(name):
    return lambda command: [word for word in command if not word.startswith(name)]


def _pair_gone(first, second):
    def change(command):
        k = next(k for k in range(len(command)) if command[k : k + 2] == [first, second])
        return command[:k] + command[k + 2 :]

    return change


def _no_filter(command):
    k = command.index("--seccomp")
    return command[:k] + command[k + 2 :]


def _added(*words):
    def change(command):
        k = command.index("--remount-ro")
        return [*command[:k], *words, *command[k:]]

    return change


def _both(*changes):
    return lambda command: functools.reduce(lambda words, change: change(words), changes, command)


TEMPORARY = tempfile.gettempdir()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_pair_gone("--remount-ro", "/"), "it writes to the root"),
        (_pair_gone("--remount-ro", "/dev"), "it writes to /dev"),
        (_limit_gone("--as="), "its memory has no limit"),
        (_limit_gone("--nproc="), "its processes have no limit"),
        (_no_filter, "its shared memory has no limit"),
        (_no_filter, "it traces processes"),
        (_no_filter, "it has privileges"),
        (_added("--share-net"), "it reaches abstract sockets"),
        (_both(_no_filter, _added("--share-net")), "it reaches the network"),
        (_added("--ro-bind", TEMPORARY, TEMPORARY), "it reads files"),
        (_added("--bind", "/dev/shm", "/dev/shm"), "it fills /dev/shm"),
        (_added("--setenv", probe.variable(), "x"), "it has our environment"),
    ],
)
def test_each_wall_that_is_down_is_found_before_anything_is_run(monkeypatch, change, told):
    with needs_sandbox():
        _opened(monkeypatch, change)
        with pytest.raises(ConfigError, match="does not work here") as error:
            Sandbox().__enter__()
        assert told in str(error.value), error.value


def test_files_of_the_machine_do_not_count_as_memory_of_a_program(monkeypatch):
    with needs_sandbox(), Sandbox() as sandbox:
        _opened(monkeypatch, _added("--ro-bind", TEMPORARY, TEMPORARY))
        monkeypatch.setattr(process, "_INODE_BYTES", 1 << 26)
        job = process.SandboxedProgram("import time; time.sleep(0.5)")
        with tempfile.TemporaryDirectory() as folder:
            for k in range(1 + sandbox.limits.memory_bytes // (1 << 26)):
                Path(folder, str(k)).touch()
            outcome = process.run(launch.Launcher.found(), sandbox.limits, job)
        assert outcome.status == 0, outcome


def test_a_child_that_is_made_while_the_walls_fall_is_ended_too(monkeypatch):
    """Nobody has seen it as a child when its parent is killed."""
    sleep, seen = ["sleep", f"987.{uuid.uuid4().int}"], []
    script = f"{' '.join(sleep)} & {' '.join(sleep)}"
    with needs_sandbox(), Sandbox() as sandbox:
        launcher = launch.Launcher.found()
        monkeypatch.setattr(launch.Launcher, "command", lambda *_: ["/bin/sh", "-c", script])
        monkeypatch.setattr(process, "_children", lambda pid: [])

        def both_live():
            seen.append(_living(sleep))
            return seen[-1] == 2

        process.run(launcher, sandbox.limits, process.SandboxedProgram(""), both_live)
        assert seen[-1] == 2, f"{seen} of them were seen, and none could be missed"
        _wait(lambda: not _living(sleep))


def _living(command):
    """How many living processes were started as this."""
    of_all = psutil.process_iter(["cmdline", "status"])
    living = [one.info for one in of_all if one.info["status"] != psutil.STATUS_ZOMBIE]
    return sum(one["cmdline"] == command for one in living)


def test_the_filter_jumps_to_its_last_line_for_each_refused_call():
    code = seccomp._filter(7, [3, 4], 5)
    lines = [struct.unpack("=HBBI", code[k : k + 8]) for k in range(0, len(code), 8)]

    def outcome(architecture, number, argument=0):
        data, at, word = {4: architecture, 0: number, 16: argument}, 0, 0
        while True:
            kind, if_true, if_false, k = lines[at]
            if kind == 0x06:
                return k
            if kind == 0x20:
                word, step = data[k], 0
            else:
                is_true = word == k if kind == 0x15 else word >= k
                step = if_true if is_true else if_false
            at += 1 + step

    allow, refuse = 0x7FFF0000, 0x00050001
    assert outcome(8, 1) == 0x80000000
    assert [outcome(7, number) for number in (1, 3, 4, 6)] == [allow, refuse, refuse, allow]
    assert [outcome(7, 5, family) for family in (1, 2, 40)] == [allow, refuse, refuse]
    assert outcome(7, 0x40000001) == refuse


def test_limits_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="processes = 0"):
        ProgramLimits(processes=0)
    with pytest.raises(ConfigError, match="workers = 0"):
        Sandbox(workers=0)


def test_an_architecture_whose_calls_are_unknown_is_refused(monkeypatch):
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "riscv64")
    with pytest.raises(ConfigError, match="riscv64"):
        seccomp.program()


def test_the_bait_of_the_probe_is_there_to_be_taken():
    """A probe for absent things would find every wall in place."""
    with needs_sandbox(), probe._bait(launch.Launcher.found(), ProgramLimits()) as told:
        assert os.path.isfile(told["file"]) and os.listdir(told["home"])
        assert told["variable"] in os.environ


def _bubbles(pid):
    return [one for one in psutil.Process(pid).children(recursive=True) if _is_bubble(one)]


def _is_bubble(one):
    try:
        return "bwrap" in one.name()
    except psutil.Error:
        return False


def _is_alive(one):
    try:
        return one.is_running() and one.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
