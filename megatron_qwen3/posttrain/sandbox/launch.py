"""Builds the command that starts a program within the walls: `Launcher.found()`.

The command is bubblewrap's, as README.md explains, with prlimit and a Python inside. As root it
first drops to nobody, since the kernel does not limit root's processes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.sandbox import seccomp
from megatron_qwen3.posttrain.sandbox.limits import ProgramLimits

PROGRAM = "/program.py"  # path of a program within its sandbox
_NOBODY = 65534
_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # into /usr, or folders of the root
_OTHER_WAY = "leave code and the python tool out where that cannot be"


@dataclass(frozen=True)
class Launcher:
    """bwrap, shell, prlimit and python: files. prefix: of a python outside of /usr, else "".
    drop: words before bwrap that give up root. filter: of system calls."""

    bwrap: str
    shell: str
    prlimit: str
    python: str
    prefix: str
    drop: tuple[str, ...]
    filter: bytes

    @classmethod
    def found(cls) -> Launcher:
        """The launcher of this machine; ConfigError, in one line, where a tool is missing."""
        drop: tuple[str, ...] = ()
        if os.geteuid() == 0:
            nobody = (f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups")
            drop = (_tool("setpriv", "util-linux"), *nobody)
        bwrap, shell = _tool("bwrap", "bubblewrap"), _tool("sh", "dash")
        prlimit = _tool("prlimit", "util-linux")
        python, prefix = _python((*drop, prlimit, "--core=0"))
        return cls(bwrap, shell, prlimit, python, prefix, drop, seccomp.program())

    def command(
        self,
        limits: ProgramLimits,
        program: int,
        filter: int,
        harness: str,
        arguments: Sequence[str],
    ) -> list[str]:
        """The command that runs `harness`, Python source, with arguments.

        program, filter: descriptors from which the program and the seccomp filter are read.
        """
        disk, shared = str(limits.disk_bytes), str(max(limits.disk_bytes // 4, 1 << 16))
        walls = [self.bwrap, "--unshare-all", "--unshare-user", "--disable-userns"]
        walls += ["--new-session", "--die-with-parent", "--as-pid-1", "--clearenv"]
        walls += ["--cap-drop", "ALL", "--hostname", "box", "--seccomp", str(filter)]
        for name, value in _ENVIRONMENT.items():
            walls += ["--setenv", name, value]
        walls += ["--ro-bind", "/usr", "/usr", *_links(), *self._interpreter()]
        walls += ["--perms", "0444", "--ro-bind-data", str(program), PROGRAM]
        walls += ["--proc", "/proc", "--dev", "/dev"]
        walls += ["--size", shared, "--tmpfs", "/dev/shm", "--size", disk, "--tmpfs", "/tmp"]
        walls += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--"]
        python = [self.python, "-s", "-S", "-B", "-c", harness, *arguments]
        return [*self.drop, *walls, *self._first(), self.prlimit, *_limits(limits), *python]

    def _first(self) -> list[str]:
        """The first process within. It waits for the program; bwrap waits for it, and so for the
        end of all others. bwrap's own first process would report the status and end later."""
        return [self.shell, "-c", 'exec 3>&2 2>/dev/null; (exec "$@" 2>&3 3>&-); exit $?', "sh"]

    def _interpreter(self) -> list[str]:
        folders = [f"{self.prefix}/{name}" for name in ("bin", "lib")] if self.prefix else []
        return [word for folder in folders for word in ("--ro-bind", folder, folder)]


_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONUTF8": "1",
    "PYTHONHASHSEED": "0",  # makes runs repeatable; -I would ignore it
    "PYTHONSAFEPATH": "1",
}


def _limits(limits: ProgramLimits) -> list[str]:
    """prlimit's words; set within, where only this sandbox's processes are counted."""
    return [
        f"--nproc={limits.processes}",
        f"--as={limits.memory_bytes}",
        f"--cpu={limits.cpu_seconds}",
        f"--fsize={limits.disk_bytes}",
        f"--nofile={limits.files}",
        "--core=0",
        "--msgqueue=0",
        "--memlock=65536",
    ]


def _links() -> list[str]:
    """/bin, /lib and so on as on this machine: links into /usr, or read-only folders."""
    words: list[str] = []
    for name in _LINKS:
        path = Path("/", name)
        if path.is_symlink():
            words += ["--symlink", os.readlink(path).removeprefix("/"), f"/{name}"]
        elif path.is_dir():
            words += ["--ro-bind", f"/{name}", f"/{name}"]
    cache = "/etc/ld.so.cache"  # paths of libraries; nothing else of /etc
    return [*words, "--ro-bind-try", cache, cache]


def _tool(name: str, package: str) -> str:
    found = shutil.which(name, path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
    if found is None:
        raise ConfigError(
            f"the sandbox needs {name}, which is not installed here: apt-get install {package} "
            f"(or your administrator's way); {_OTHER_WAY}"
        )
    return found


def _python(start: Sequence[str]) -> tuple[str, str]:
    """(file, prefix to bind) of the first interpreter that the sandbox's user can read.

    start: the words that start a command as that user. The program that they run last has lost the
    privileges to start Python; setpriv itself still has them.
    """
    own = os.path.realpath(sys.executable)
    prefix = os.path.realpath(sys.base_prefix)
    tried = [(own, "" if _is_in_usr(own) else prefix)]
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        if found := shutil.which(name, path="/usr/local/bin:/usr/bin"):
            tried.append((os.path.realpath(found), ""))
    for python, outside in tried:
        is_whole = _is_in_usr(python) or (outside and python.startswith(f"{outside}/bin/"))
        if is_whole and _runs([*start, python, "-I", "-S", "-c", ""]):
            return python, outside
    raise ConfigError(
        f"the sandbox needs a Python that its user can run: {own} is none, and /usr has none; "
        f"apt-get install python3; {_OTHER_WAY}"
    )


def _is_in_usr(path: str) -> bool:
    return path.startswith("/usr/")


def _runs(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, cwd="/", env={})
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
