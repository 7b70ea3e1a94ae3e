"""Lets processes end with the one that started them, and a run end cleanly on a signal.

    die_with_parent()                 # first in a worker, however its parent ends
    with ended_by_signals(): ...      # SIGTERM and SIGHUP come as Stopped
    with errors_for_people(out): ...  # a full disk is one line, with the way out

A worker that lives on after a kill goes on writing where the next run writes. The kernel ends it
with the process that forked it (Linux), a thread with the one that asked for it (everywhere).
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from megatron_qwen3.settings import ConfigError

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """The run was told to end. exit_status: the one that a shell expects then."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_status = 128 + number


def die_with_parent() -> None:
    """End this process when that which started it has ended. Ctrl-C, which a terminal sends to all
    processes of a run, is left to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if not parent.is_alive():  # it ended before it was asked for
        os._exit(1)
    threading.Thread(target=_outlive, args=(parent,), daemon=True).start()


def _outlive(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Signals that would kill come as Stopped; those that were ignored (nohup) stay ignored."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def errors_for_people(out: Path) -> Iterator[None]:
    """Turn errors of the operating system (a full disk, rights) into one with the way out."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{error.filename or out}: {error.strerror or error}; "
            "what is done is kept: mend it and run the same command again"
        ) from None
