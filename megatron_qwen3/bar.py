"""How far a command is, on standard error: a bar in a terminal, a line now and then elsewhere.

with progress("answers", total, is_shown=launcher.rank() == 0) as advance:
    advance(8)
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from megatron_qwen3.shown import shown

LINE_SECONDS = 15.0


@contextmanager
def progress(what: str, total: int, is_shown: bool) -> Iterator[Callable[[int], None]]:
    """What moves it on by a count. is_shown: False on all ranks but the first."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if is_shown and not console.is_terminal:
        yield _lines(what, total)
        return
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("left"), console=console, disable=not is_shown) as bar:
        task = bar.add_task(shown(what), total=total)
        yield lambda count: bar.advance(task, count)


def _lines(what: str, total: int) -> Callable[[int], None]:
    """Prints how much is done and the time left, at most each LINE_SECONDS."""
    began = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done, now = done + count, time.monotonic()
        if now - last >= LINE_SECONDS and done < total:
            last = now
            minutes = (now - began) / done * (total - done) / 60 if done else 0.0
            line = f"{what}: {done:,} of {total:,}, {minutes:.1f} minutes left"
            print(shown(line), file=sys.stderr, flush=True)

    return advance
