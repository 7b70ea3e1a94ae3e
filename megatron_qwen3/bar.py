"""Shows how far a command is, on standard error: a bar in a terminal, elsewhere a line at times.

    with Bar("answers", 5000) as bar:
        bar.advance(8)
        bar.say("note: an answer is empty")
    with Bar("", input_bytes, in_megabytes) as bar:
        bar.skip(done_before)                        # by an earlier run
        bar.stage("tokenizing", ticks, share_bytes)  # of all, where other things are counted
        bar.advance(1000)                            # of this stage's ticks

The time left is that of the whole, at the rate at which this process has worked so far.
"""

import sys
import time
from collections.abc import Callable
from typing import Self

from megatron_qwen3.shown import plain, shown

LINE_SECONDS = 15.0


def in_numbers(done: float, total: float, _: float) -> str:
    """How much is done of how much."""
    return f"{done:,.0f} of {total:,.0f}"


def in_megabytes(done: float, total: float, rate: float) -> str:
    """The same of bytes, with bytes per second."""
    return f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB  {rate / 1e6:.1f} MB/s"


class Bar:
    """Progress through `total` things; `told` puts it into words. is_shown: False on other
    ranks."""

    def __init__(
        self,
        title: str,
        total: float,
        told: Callable[[float, float, float], str] = in_numbers,
        is_shown: bool = True,
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._console = Console(file=sys.stderr, highlight=False, quiet=not is_shown)
        self._title, self._total, self._told = title, max(1, total), told
        self._done, self._skipped, self._scale = 0.0, 0.0, 1.0
        self._start = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[now]}", markup=False),
            console=self._console,
            refresh_per_second=4,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(shown(title), total=self._total, now="")

    def stage(self, title: str, ticks: int, share: float) -> None:
        """Let `advance` count other things from here on: `ticks` are worth `share` of the total."""
        self._title, self._scale = title, share / max(1, ticks)
        self.advance(0)

    def advance(self, ticks: float = 1) -> None:
        """Count so many more ticks as done."""
        self._done += ticks * self._scale
        title, now = self._title, self._now()
        self._bar.update(self._task, completed=self._done, description=shown(title), now=now)
        is_due = time.monotonic() - self._last_line >= LINE_SECONDS
        if is_due and not self._console.is_terminal:
            self._last_line = time.monotonic()
            self.say(f"{title}  {min(1.0, self._done / self._total):4.0%}  {now}")

    def skip(self, share: float) -> None:
        """Count a share that an earlier run did; the time left is not estimated from it."""
        self._done += share
        self._skipped += share

    def say(self, line: str) -> None:
        """Print a line of its own, above the bar."""
        self._console.print(plain(line), markup=False, soft_wrap=True)

    def _now(self) -> str:
        done = self._done - self._skipped
        rate = done / max(1e-9, time.monotonic() - self._start)
        left = duration((self._total - self._done) / rate if rate else None)
        return f"{self._told(self._done, self._total, rate)}  left {left}"

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def duration(seconds: float | None) -> str:
    """m:ss, h:mm:ss or days and hours; a dash for None."""
    if seconds is None:
        return "–"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}h"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
