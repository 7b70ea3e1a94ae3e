"""Tries the walls of a sandbox from within; probe.py runs it there, and no module imports it.

Standard input is a JSON object; standard output gets a list of the walls that did not hold.
"""

import ctypes
import json
import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

_AF_VSOCK, _NEW_USER = 40, 0x10000000


class _KeptOut(Exception):
    """The wall holds."""


def _needs(is_through: bool) -> None:
    if not is_through:
        raise _KeptOut


def _fill(folder: str, most: int) -> None:
    """Write files until they have more than `most` bytes."""
    written = 0
    paths = [f"{folder}/{k}" for k in range(4)]
    for path in paths:
        try:
            with open(path, "wb", buffering=0) as file:
                while written <= most:
                    written += file.write(bytes(1 << 18))
        except OSError:
            continue  # a limit on files, not yet on the disk
    for path in paths:
        os.unlink(path)
    _needs(written > most)


def _fork(most: int) -> None:
    children = []
    try:
        for _ in range(most):
            child = os.fork()
            if not child:
                signal.pause()
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _privileges() -> None:
    with open("/proc/self/status", encoding="utf-8") as file:
        status = dict(line.split(":", 1) for line in file)
    capabilities = int(status["CapEff"], 16) | int(status["CapBnd"], 16)
    walls = (status["NoNewPrivs"].strip(), status["Seccomp"].strip())
    _needs(capabilities != 0 or walls != ("1", "2") or 0 in (os.getuid(), os.getgid()))


def _write(path: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write("x")


def _read(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        file.read()


def _tries(told: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """The tries, by name: each raises where the wall holds."""
    library = ctypes.CDLL(None)
    network = (socket.AF_INET, socket.SOCK_STREAM)
    return {
        "it reaches the network": lambda: socket.socket(*network).connect(
            ("127.0.0.1", told["port"])
        ),
        "it reaches abstract sockets": lambda: socket.socket(socket.AF_UNIX).connect(
            "\0" + told["name"]
        ),
        "it opens sockets to the machine's host": lambda: socket.socket(_AF_VSOCK),
        "it reads files": lambda: _read(told["file"]),
        "it sees HOME": lambda: _needs(bool(set(os.listdir(told["home"])) - told["bound"])),
        "it sees our processes": lambda: _needs(told["pid"] in map(int, _numbers())),
        "it writes to the root": lambda: _write("/written"),
        "it writes to /usr": lambda: _write("/usr/written"),
        "it writes to /dev": lambda: _write("/dev/written"),
        "it fills /tmp": lambda: _fill("/tmp", told["disk"]),
        "it fills /dev/shm": lambda: _fill("/dev/shm", told["disk"]),
        # Addresses alone: memory that is written to would end this program before it can tell.
        "its memory has no limit": lambda: mmap.mmap(-1, told["memory"]).close(),
        "its shared memory has no limit": lambda: _needs(library.shmget(0, 4096, 0o600) != -1),
        "its processes have no limit": lambda: _fork(told["processes"]),
        "it makes namespaces": lambda: _needs(library.unshare(_NEW_USER) == 0),
        "it traces processes": lambda: _needs(library.ptrace(0, 0, 0, 0) == 0),
        "it has privileges": _privileges,
        "it has our environment": lambda: _needs(told["variable"] in os.environ),
    }


def _numbers() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


def main() -> None:
    told = json.loads(sys.stdin.read())
    told["bound"] = set(told["bound"])
    through = []
    for name, attempt in _tries(told).items():
        try:
            attempt()
        except (_KeptOut, OSError, MemoryError):
            continue
        through.append(name)
    print(json.dumps(through))


if __name__ == "__main__":
    main()
