"""Requests to stop a run early, with a save, to be continued: by a signal or a time limit.

    check(config)                              # before any rank starts: is there enough time?
    request = StopRequest(config)
    reason = request.reason(step_seconds)      # between steps: this rank's reason to stop, or 0

SIGUSR1, SIGTERM, SIGINT and SIGHUP request a stop, unless they were ignored when the run began
(nohup), as does the time limit: run.time_limit_minutes after the start, or the end of the SLURM
job. Ranks notice at different moments; `watch.roll_call` makes them stop after the same step. The
program then ends with status CONTINUE. A second SIGTERM, SIGINT or SIGHUP ends the process at once,
without a save, when it comes AT_ONCE_SECONDS or more after the first: SLURM, torchrun and terminals
deliver one request twice within moments.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from megatron_qwen3.settings import Config, ConfigError

CONTINUE = 75  # EX_TEMPFAIL of sysexits.h: try again later
AT_ONCE_SECONDS = 5.0
_TORCHRUN_SECONDS = 30  # from a signal until torchrun kills its ranks
_REASONS = ("", "SIGUSR1", "SIGTERM", "the time limit", "SIGINT", "SIGHUP")
_URGENT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopAsked(Exception):
    """A stop was requested within a step, which is abandoned; raised on all ranks."""


def check(config: Config) -> None:
    """ConfigError where the job would end before the run could do more than save."""
    began, ends = _slurm_seconds("SLURM_JOB_START_TIME"), _slurm_seconds("SLURM_JOB_END_TIME")
    margin = config.run.stop_early_seconds
    if began and ends and ends - began <= margin:
        raise ConfigError(
            f"run.stop_early_seconds = {margin:g}, but SLURM ends this job {ends - began:g} s "
            "after its start: a longer --time, or fewer seconds for the save"
        )


class StopRequest:
    """Listens from its creation on; to be made in the main thread."""

    def __init__(self, config: Config) -> None:
        self._signalled = 0
        self._margin_seconds = config.run.stop_early_seconds
        ends = [_slurm_seconds("SLURM_JOB_END_TIME")]
        if config.run.time_limit_minutes:
            ends.append(time.time() + 60 * config.run.time_limit_minutes)
        self._end = min((end for end in ends if end), default=None)
        if threading.current_thread() is threading.main_thread():
            self._listen()

    def reason(self, step_seconds: float) -> int:
        """The present reason to stop, 0 for none. step_seconds: of one more step."""
        if self._signalled:
            return self._signalled
        late = self._end is not None and (
            time.time() + step_seconds > self._end - self._margin_seconds
        )
        return _REASONS.index("the time limit") if late else 0

    def _listen(self) -> None:
        for number in (signal.SIGUSR1, *_URGENT):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._hear)
        # Python runs `_hear` only when the main thread returns from torch, which may never happen;
        # a second signal must end even a process that hangs there.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        read = threading.Thread(target=_end_at_second, args=(reader, end_now), daemon=True)
        read.start()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._signalled = _REASONS.index(signal.Signals(number).name)


def _end_at_second(reader: int, end: Callable[[int], object]) -> None:
    """Call `end` at the first urgent signal AT_ONCE_SECONDS or more after the first of all.

    reader: yields the number of every signal as a byte.
    """
    first = None
    while number := os.read(reader, 1):
        if number[0] in _URGENT:
            now = time.monotonic()
            first = first or now
            if now - first >= AT_ONCE_SECONDS:
                end(number[0])


def end_now(number: int) -> NoReturn:
    """End this process as the signal would have, and restore the terminal's cursor."""
    try:
        cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        sys.stderr.write(
            f"{cursor}stopped at once: {signal.Signals(number).name} again; nothing was saved\n"
        )
        sys.stderr.flush()
    finally:
        os._exit(128 + number)


def told(reason: int) -> str:
    """A reason in words."""
    if os.environ.get("TORCHELASTIC_RUN_ID") and _REASONS[reason] in {s.name for s in _URGENT}:
        return f"{_REASONS[reason]} (torchrun kills the ranks {_TORCHRUN_SECONDS} s after it)"
    return _REASONS[reason]


def _slurm_seconds(variable: str) -> float | None:
    """A time from SLURM's environment, in seconds; None without one."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"{variable} = {text} is not a time in seconds; unset it, or let SLURM set it"
        ) from None
