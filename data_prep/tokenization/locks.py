"""One run at a time in a work folder, counting the processes that a killed run left behind.

    with owned(folder): ...        # the run; ConfigError while another one works there
    with shared(folder): ...       # each of its processes, as long as it writes there

Locks are the operating system's: they end with the process, however it ends. Where a file system
has none (some network mounts), nothing is locked.
"""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_qwen3.config import ConfigError

PATIENCE_SECONDS = 5.0  # what processes of a killed run may take to notice
_NAME = "lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Nobody else is at work in the folder now, nor begins as long as this lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE_SECONDS
    with open(folder / _NAME, "w") as file:
        while not _lock(file.fileno(), fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise ConfigError(f"another run is at work in {folder}; let it end, or stop it")
            time.sleep(0.1)
        _lock(file.fileno(), fcntl.LOCK_SH)
        yield


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """The folder is in use."""
    with open(folder / _NAME, "w") as file:
        _lock(file.fileno(), fcntl.LOCK_SH)
        yield


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
