"""How far a build is: `Steps()`, a bar in a terminal for each step, a line now and then elsewhere.

with steps.bar("thinking answers", total=5000, done=1200) as bar:
    bar.advance()
steps.say("note: …")
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from data_prep.tokenization.progress import LINE_SECONDS, clock
from megatron_qwen3.shown import plain, shown


class Bar:
    """One step: `total` things, of which an earlier run did `done`."""

    def __init__(self, console: rich.console.Console, title: str, total: int, done: int) -> None:
        self._console, self._title, self._total = console, title, total
        self._done = self._before = done
        self._start = self._last_line = time.monotonic()
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[now]}", markup=False),
                console=console,
                refresh_per_second=4,
            )
            self._task = self._progress.add_task(shown(title), total=total, completed=done, now="")
            self._progress.start()

    def advance(self) -> None:
        """One more is done."""
        self._done += 1
        if self._progress:
            self._progress.update(self._task, completed=self._done, now=f"left {self._left()}")
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            line = f"{self._title}  {self._done:,} of {self._total:,}  left {self._left()}"
            self._console.print(plain(line), soft_wrap=True)

    def close(self) -> None:
        if self._progress:
            self._progress.stop()

    def _left(self) -> str:
        rate = (self._done - self._before) / max(1e-9, time.monotonic() - self._start)
        return clock((self._total - self._done) / rate) if rate else "–"


class Steps:
    """What a person sees of a build, on standard error."""

    def __init__(self) -> None:
        self._console = rich.console.Console(stderr=True, highlight=False)

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Where all is done already nothing is shown."""
        bar = Bar(self._console, title, total, done)
        try:
            yield bar
        finally:
            bar.close()

    def say(self, line: str) -> None:
        self._console.print(plain(line), soft_wrap=True)
