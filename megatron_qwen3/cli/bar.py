"""A bar with the time left, on standard error, where that is a terminal.

with progress("answers", total, is_shown=launcher.rank() == 0) as advance:
    advance(8)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from megatron_qwen3.shown import shown


@contextmanager
def progress(what: str, total: int, is_shown: bool) -> Iterator[Callable[[int], None]]:
    """What moves it on by a count. is_shown: False on all ranks but the first."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    is_seen = is_shown and console.is_terminal
    with Progress(*columns, TextColumn("left"), console=console, disable=not is_seen) as bar:
        task = bar.add_task(shown(what), total=total)
        yield lambda count: bar.advance(task, count)
