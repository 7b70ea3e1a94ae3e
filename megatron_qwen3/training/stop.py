"""When a run is to stop early, save, and be continued: a signal, or the end of its time.

    request = StopRequest(config)
    reason = request.reason(step_seconds)      # between steps: why this rank would stop, or 0

SIGUSR1 and SIGTERM ask for it, as does the time limit: run.time_limit_minutes after the start, or
SLURM's end of the job. Ranks hear of it at different moments; `watch.roll_call` makes them stop
after the same step. The program then ends with status CONTINUE.
"""

import os
import signal
import threading
import time
from types import FrameType

from megatron_qwen3.config import Config

CONTINUE = 75  # EX_TEMPFAIL of sysexits.h: try again later
_REASONS = ("", "SIGUSR1", "SIGTERM", "the time limit")


class StopRequest:
    """Listens from its making on; signals reach it in the main thread alone."""

    def __init__(self, config: Config) -> None:
        self._signalled = 0
        self._margin_seconds = config.run.stop_early_seconds
        ends = (
            [float(os.environ["SLURM_JOB_END_TIME"])] if "SLURM_JOB_END_TIME" in os.environ else []
        )
        if config.run.time_limit_minutes:
            ends.append(time.time() + 60 * config.run.time_limit_minutes)
        self._end = min(ends, default=None)
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGUSR1, signal.SIGTERM):
                signal.signal(name, self._hear)

    def reason(self, step_seconds: float) -> int:
        """Which of the reasons there is now, 0 for none; one more step would take that long."""
        if self._signalled:
            return self._signalled
        late = self._end is not None and (
            time.time() + step_seconds > self._end - self._margin_seconds
        )
        return _REASONS.index("the time limit") if late else 0

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._signalled = _REASONS.index(signal.Signals(number).name)


def told(reason: int) -> str:
    """A reason for people."""
    return _REASONS[reason]
