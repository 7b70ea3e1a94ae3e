"""Tests whether the walls hold on this machine: a program tries to get through each.

check(launcher, limits)    # ConfigError that names each wall that does not hold
"""

import contextlib
import json
import os
import socket
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.sandbox import process
from megatron_qwen3.posttrain.sandbox.launch import Launcher
from megatron_qwen3.posttrain.sandbox.limits import ProgramLimits, ProgramOutcome
from megatron_qwen3.posttrain.sandbox.process import SandboxedProgram

_TRIES = Path(__file__).with_name("tries.py")
_SECONDS = 60.0  # enough on a busy machine
_WAY_OUT = (
    "it needs bubblewrap 0.8 and user namespaces (`unshare -Ur true` tells; a container's own "
    "walls may forbid them: --security-opt seccomp=unconfined); else leave code and the python "
    "tool out"
)


def check(launcher: Launcher, limits: ProgramLimits) -> None:
    """ConfigError, in one line, where no program starts, or the test gets through a wall."""
    with _bait(launcher, limits) as told:
        job = SandboxedProgram(_TRIES.read_text(encoding="utf-8"), json.dumps(told).encode())
        longer = replace(limits, seconds=_SECONDS, cpu_seconds=int(_SECONDS), output_bytes=1 << 16)
        outcome = process.run(launcher, longer, job)
    if reason := _reason(outcome):
        raise ConfigError(f"the sandbox does not work here: {reason}; {_WAY_OUT}")


def _reason(outcome: ProgramOutcome) -> str:
    if outcome.failure:
        return " ".join(outcome.failure.split())
    if outcome.status != 0:
        end = outcome.killed_by or f"status {outcome.status}"
        return " ".join(f"a program that tries it ended by {end}: {outcome.stderr[-300:]}".split())
    return ", ".join(json.loads(outcome.stdout))


@contextlib.contextmanager
def _bait(launcher: Launcher, limits: ProgramLimits) -> Iterator[dict[str, Any]]:
    """Targets that a program without walls would reach."""
    name, home = f"mq3-{uuid.uuid4().hex}", os.path.expanduser("~")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        hidden = stack.enter_context(socket.socket(socket.AF_UNIX))
        hidden.bind("\0" + name)
        hidden.listen()
        file = stack.enter_context(tempfile.NamedTemporaryFile("w"))
        os.chmod(file.name, 0o644)
        yield {
            "port": listener.getsockname()[1],
            "name": name,
            "file": file.name,
            "home": home,
            "bound": _on_the_way(launcher.prefix, home),
            "pid": os.getpid(),
            "variable": variable(),
            "disk": limits.disk_bytes,
            "memory": limits.memory_bytes,
            "processes": limits.processes,
        }


def variable() -> str:
    """Name of a variable of our environment that programs must not see."""
    return min(set(os.environ) - {"PATH", "HOME", "LANG", "PWD"}, default="USER")


def _on_the_way(prefix: str, home: str) -> list[str]:
    """The one entry of HOME that leads to the interpreter, if it lies there."""
    path = Path(prefix or "/")
    return [path.relative_to(home).parts[0]] if path.is_relative_to(home) and prefix else []
