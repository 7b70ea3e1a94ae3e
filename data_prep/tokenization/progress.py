"""How far a run over files is: a bar in a terminal, a line now and then everywhere else.

    with Progress(total_bytes) as progress:
        with_share = progress.stage("tokenizing", ticks, share_bytes)
        progress.advance(1000)                  # of this stage's ticks

Everything is counted in bytes of input, of which each stage is a share, so that the time left is
that of the whole run.
"""

from __future__ import annotations

import time
from typing import Self

import rich.console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from megatron_qwen3.shown import plain, shown

LINE_SECONDS = 15.0


class Progress:
    """From `total_bytes` of input; what an earlier run did is passed over by `skip`."""

    def __init__(self, total_bytes: int) -> None:
        self._console = rich.console.Console(stderr=True, highlight=False)
        self._total, self._done, self._skipped = max(1, total_bytes), 0.0, 0.0
        self._title, self._scale = "", 0.0
        self._start = self._last_line = time.monotonic()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[now]}", markup=False),
        )
        self._bar = Bar(*columns, console=self._console, refresh_per_second=4)
        self._task = self._bar.add_task("", total=self._total, now="")

    def stage(self, title: str, ticks: int, share_bytes: float) -> None:
        """What `advance` counts from here on: `ticks` are worth `share_bytes` of the input."""
        self._title, self._scale = title, share_bytes / max(1, ticks)
        self.advance(0)

    def advance(self, ticks: int) -> None:
        self._done += ticks * self._scale
        if self._console.is_terminal:
            self._bar.update(
                self._task, completed=self._done, description=shown(self._title), now=self._now()
            )
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            share = f"{min(1.0, self._done / self._total):4.0%}"
            self._console.print(plain(f"{self._title}  {share}  {self._now()}"), soft_wrap=True)

    def skip(self, share_bytes: float) -> None:
        """An earlier run did this much: it says nothing about the time that the rest takes."""
        self._done += share_bytes
        self._skipped += share_bytes

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        self._console.print(plain(line), markup=False, soft_wrap=True)

    def _now(self) -> str:
        done = self._done - self._skipped
        rate = done / max(1e-9, time.monotonic() - self._start)
        left = clock((self._total - self._done) / rate) if rate else "–"
        done_mb, total_mb = self._done / 1e6, self._total / 1e6
        return f"{done_mb:,.0f} of {total_mb:,.0f} MB  {rate / 1e6:.1f} MB/s  left {left}"

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()


def clock(seconds: float) -> str:
    """h:mm:ss, without the hours where there are none."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
