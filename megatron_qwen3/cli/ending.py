"""Ends commands: an error is one line, with its exit status.

@ending()                # of a command's `main`
@ending(goes_on=True)    # of one that goes on where it was when it is called again
"""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

from megatron_qwen3 import launcher
from megatron_qwen3.chat_check import ChatError
from megatron_qwen3.config import ConfigError

Words = ParamSpec("Words")
Main = Callable[Words, int]


def ending(goes_on: bool = False) -> Callable[[Main[Words]], Main[Words]]:
    """`main` whose status is 2 where something given is wrong, or a file cannot be read or written,
    and 130 or 143 where one that goes on is stopped."""

    def of(main: Main[Words]) -> Main[Words]:
        @functools.wraps(main)
        def ended(*words: Words.args, **named: Words.kwargs) -> int:
            try:
                return _stoppable(main, *words, **named) if goes_on else main(*words, **named)
            except (ConfigError, ChatError) as error:
                launcher.tell(f"error: {error}")
            except OSError as error:
                again = "; when that is mended, the same command goes on" if goes_on else ""
                launcher.tell(f"error: {error}{again}")
            return 2

        return ended

    return of


def _stoppable(main: Main[Words], *words: Words.args, **named: Words.kwargs) -> int:
    from data_prep.lifetime import Stopped, ended_by_signals

    try:
        with ended_by_signals():
            return main(*words, **named)
    except KeyboardInterrupt as stop:
        print("stopped; the same command goes on", file=sys.stderr)
        return stop.exit_status if isinstance(stop, Stopped) else 130
