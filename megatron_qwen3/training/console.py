"""What a person sees of a run: a progress bar in a terminal, plain lines everywhere else.

    console = Console(steps=500, first_step=0, every_steps=10)
    console.step(row)
    console.say("checkpoint of step 100 saved")
    console.close()

`row` is a training row of metrics.jsonl (`metrics.py`). A log file gets one line every
`every_steps`, besides those of the first step, which shows early that the run is alive, and of the
last. Colour follows rich: NO_COLOR and FORCE_COLOR are honoured.
"""

import statistics
from collections import deque
from collections.abc import Iterable, Mapping

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from megatron_qwen3.shown import plain

_RECENT_STEPS = 50  # that the time left is estimated from


class Console:
    """Lines, and in a terminal a bar below them, from `first_step` steps done to `steps`."""

    def __init__(self, steps: int, first_step: int, every_steps: int) -> None:
        self.steps, self.every_steps = steps, every_steps
        self.clock = Clock(steps)
        self.rich = rich.console.Console(highlight=False)
        self.bar = self._progress_bar() if self.rich.file.isatty() else None
        if self.bar:
            self.task = self.bar.add_task("", total=steps, completed=first_step, now="", left="")
            self.bar.start()

    def step(self, row: Mapping[str, float]) -> None:
        """Show a step that is done; row needs step, loss, step_seconds, tokens_per_second, …"""
        step = int(row["step"])
        is_first = not self.clock.has_started
        self.clock.tick(row["step_seconds"])
        left = duration(self.clock.left(step))
        if self.bar:
            now = f"loss {row['loss']:.4f}  {count(row['tokens_per_second'])} tok/s"
            self.bar.update(self.task, completed=step, now=now, left=f"left {left}")
        if is_first or step % self.every_steps == 0 or step == self.steps:
            self.say(step_line(row, self.steps, "" if self.bar else left))

    def say(self, line: str | Text) -> None:
        """A line of its own, above the bar; a string is shown without markup, on one line."""
        self.rich.print(plain(line) if isinstance(line, str) else line, soft_wrap=True)

    def close(self) -> None:
        """Give the terminal its cursor back."""
        if self.bar:
            self.bar.stop()

    def _progress_bar(self) -> Progress:
        return Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False, style="bold"),
            console=self.rich,
            refresh_per_second=4,
        )


class Clock:
    """The time left, from the median of recent steps without the first, which warms up."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.has_started = False
        self.recent_seconds: deque[float] = deque(maxlen=_RECENT_STEPS)

    def tick(self, seconds: float) -> None:
        """A step took `seconds`."""
        if self.has_started:
            self.recent_seconds.append(seconds)
        self.has_started = True

    def left(self, step: int) -> float | None:
        """Seconds of the steps after `step`; None as long as nothing is known."""
        if step >= self.steps:
            return 0.0
        if not self.recent_seconds:
            return None
        return statistics.median(self.recent_seconds) * (self.steps - step)


def step_line(row: Mapping[str, float], steps: int, left: str) -> Text:
    """One step for people, aligned with the lines of the other steps; `left` "" is left out."""
    fields = [
        ("step", f"{int(row['step']):>{len(str(steps))}}/{steps}", ""),
        ("loss", f"{row['loss']:.4f}", ""),
        ("grad", f"{_short(row['grad_norm']):>4}", ""),
        ("lr", f"{row['lr']:.1e}", ""),
        ("", f"{count(row['tokens_per_second']):>5}", "tok/s"),
        ("", f"{_short(row['tflops_per_rank']):>5}", "TFLOP/s"),
    ]
    if row.get("mfu") is not None:
        fields.append(("MFU", f"{100 * row['mfu']:4.1f} %", ""))
    if "accuracy" in row:
        fields.append(("", f"{100 * row['accuracy']:5.1f} %", "ranked as given"))
    if "expert_balance" in row:
        fields.append(("experts", f"{row['expert_balance']:.2f}×", ""))
    if left:
        fields.append(("left", left, ""))
    return _labelled(fields)


def source_line(source: str, width: int, row: Mapping[str, float | None]) -> Text:
    """The evaluation of one source for people; `width` aligns the names."""
    name = f"  {source:<{width}} "
    if row.get("pairs") is not None:
        ranked = f"{100 * (row['accuracy'] or 0):.1f} %"
        loss = (name, f"{row['loss']:.4f}", "nats/pair")
        return _labelled(
            [loss, ("", ranked, "ranked as given"), ("over", count(row["pairs"] or 0), "pairs")]
        )
    fields = [(name, f"{row['loss']:.4f}", "nats/token")]
    if row["bits_per_byte"] is not None:
        fields.append(("", f"{row['bits_per_byte']:.4f}", "bits/byte"))
    fields.append(("over", count(row["tokens"] or 0), "tokens"))
    return _labelled(fields)


def _labelled(fields: Iterable[tuple[str, str, str]]) -> Text:
    """label, value and unit of each field; labels and units step back."""
    parts = [
        plain(" ").join(
            plain(part, style) for part, style in zip(field, styles, strict=True) if part
        )
        for field, styles in ((field, ("dim", "", "dim")) for field in fields)
    ]
    return plain("  ").join(parts)


def count(number: float) -> str:
    """Three digits and a letter: 12.3k, 1.20M, 36.0T."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{_three_digits(number / size)}{letter}"
    return f"{number:.0f}"


def duration(seconds: float | None) -> str:
    """m:ss, h:mm:ss or days and hours; a dash for None."""
    if seconds is None:
        return "–"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}h"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _three_digits(number: float) -> str:
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"


def _short(number: float) -> str:
    """At least two digits that say something: 0.83, 412, 0.018, 3.0e-04."""
    size = abs(number)
    if number and not 0.001 <= size < 1e4:
        return f"{number:.1e}"
    return f"{number:.{3 if 0 < size < 0.1 else 2 if size < 100 else 0}f}"
