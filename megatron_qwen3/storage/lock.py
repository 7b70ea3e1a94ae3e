"""Locks that give a folder one owner at a time, even over processes that a killed one left.

    with owned(folder): ...        # the owner; InUse names host and process of another
    with shared(folder): ...       # each of its processes, as long as it writes there
    with alone(path, 7): ...       # task 7 of a file's tasks; a second copy waits

Locks are the operating system's: they end with the process, however it ends. Where a file system
has none (some network mounts), nothing is locked. Nothing here imports torch.
"""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from megatron_qwen3.settings import ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.whole import make

PATIENCE_SECONDS = 5.0  # for processes of a killed owner to notice
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class InUse(ConfigError):
    """Another run is at work in the folder; the text names it."""


@contextmanager
def owned(
    folder: Path, name: str = "lock", patience_seconds: float = PATIENCE_SECONDS
) -> Iterator[None]:
    """Own the folder: no other run is at work in it, or starts while this lasts.

    name: of the lock's file in the folder. Both are made if missing.
    """
    make(folder)
    deadline = time.monotonic() + patience_seconds
    with _opened(folder / name) as file:
        while not _taken(file):
            if time.monotonic() > deadline:
                raise InUse(
                    f"another run is at work in {folder} ({_owner(file)}); let it end, or stop it"
                )
            time.sleep(0.1)
        yield


@contextmanager
def shared(folder: Path, name: str = "lock") -> Iterator[None]:
    """Mark the folder as in use."""
    with _opened(folder / name) as file:
        _lock(file.fileno(), fcntl.LOCK_SH)
        yield


@contextmanager
def alone(path: Path, task: int) -> Iterator[None]:
    """Exclude other processes from such a block with the same file and task: they wait.

    A process may be in one such block of a file at a time.
    """
    make(path.parent)
    with path.open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX, 1, task)  # of one byte, which need not exist
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield


def owner_of(folder: Path, name: str = "lock") -> str:
    """The owner of the folder, in words; "" where there is none, or it is unknown."""
    try:
        with open(folder / name, encoding="utf-8", errors="replace") as file:
            is_free = _lock(file.fileno(), fcntl.LOCK_EX)  # released with the file
            return "" if is_free else _owner(file)
    except OSError:
        return ""


def _taken(file: IO[str]) -> bool:
    """Take the lock for this process and those that share it; False where another owner has it."""
    if not _lock(file.fileno(), fcntl.LOCK_EX):
        return False
    file.truncate(0)
    file.write(f"{socket.gethostname()} {os.getpid()}\n")
    file.flush()
    # The kernel releases one lock before it gives the other: another process may come between.
    return _lock(file.fileno(), fcntl.LOCK_SH)


def _opened(path: Path) -> IO[str]:
    return open(path, "a+", encoding="utf-8", errors="replace")


def _owner(file: IO[str]) -> str:
    """Host and process of the owner, as it wrote them down."""
    file.seek(0)
    host, _, process = file.read(1000).strip().partition(" ")
    return f"host {shown(host)}, process {shown(process)}" if process else "it left no name"


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
