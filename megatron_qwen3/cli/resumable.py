"""Ends a command that goes on when it is called again: `return status_of(work)`."""

import sys
from collections.abc import Callable

from data_prep.lifetime import Stopped, ended_by_signals
from megatron_qwen3 import launcher
from megatron_qwen3.config import ConfigError


def status_of(work: Callable[[], int]) -> int:
    """Do the work: its exit status, 130 or 143 where it was stopped, or 2, told in a line, where
    something given is wrong or a file cannot be read or written."""
    try:
        with ended_by_signals():
            return work()
    except ConfigError as error:
        launcher.tell(f"error: {error}")
    except KeyboardInterrupt as stop:
        print("stopped; the same command goes on", file=sys.stderr)
        return stop.exit_status if isinstance(stop, Stopped) else 130
    except OSError as error:
        launcher.tell(f"error: {error}; when that is mended, the same command goes on")
    return 2
