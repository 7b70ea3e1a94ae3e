"""Shows a run's progress: a bar in a terminal, plain lines everywhere else.

    console = Console(steps=500, first_step=0, every_steps=10)
    console.rollouts(row)      # in modes that sample answers, before the updates on a batch of them
    console.step(row)
    console.say("checkpoint of step 100 saved")
    console.close()

`row` is a training row of metrics.jsonl (`metrics.py`). A log file gets a line every `every_steps`,
and for the first step, which shows early that the run works, the second, with the first estimate of
the time left, and the last. Colour follows rich: NO_COLOR and FORCE_COLOR are honoured.
"""

import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from megatron_qwen3.bar import duration
from megatron_qwen3.shown import plain

_RECENT_STEPS = 50  # number of steps from which the time left is estimated


class Console:
    """Lines, and in a terminal a bar below them, from `first_step` steps done to `steps`."""

    def __init__(self, steps: int, first_step: int, every_steps: int, updates: int = 0) -> None:
        """updates: steps per batch of rollouts; 0 without rollouts."""
        self.steps, self.every_steps, self.updates = steps, every_steps, updates
        self.clock = Clock(steps, updates)
        self._batch = ""  # label of the batch of rollouts, for the bar
        self.rich = rich.console.Console(highlight=False)
        self.bar = self._progress_bar() if self.rich.file.isatty() else None
        if self.bar:
            self.task = self.bar.add_task("", total=steps, completed=first_step, now="", left="")
            self.bar.start()

    def step(self, row: Mapping[str, float]) -> None:
        """Show a finished step; row needs step, loss, step_seconds, tokens_per_second, …"""
        step = int(row["step"])
        is_early = len(self.clock.recent_seconds) == 0  # the first step, and the first measured one
        self.clock.tick(row["step_seconds"])
        left = duration(self.clock.left(step))
        if self.bar:
            now = f"{self._batch}loss {row['loss']:.4f}  {count(row['tokens_per_second'])} tok/s"
            self.bar.update(self.task, completed=step, now=now, left=f"left {left}")
        if is_early or step % self.every_steps == 0 or step == self.steps:
            self.say(step_line(row, self.steps, "" if self.bar else left))

    def rollouts(self, row: Mapping[str, Any]) -> None:
        """Show a batch of rollouts, a row of `RunLog.rollouts`: its line comes before those of its
        updates."""
        self.clock.sampled(row["seconds"])
        batches = -(-self.steps // self.updates) if self.updates else 0
        line = rollouts_line(row, batches)
        self._batch = f"batch {int(row['batch']) + 1}/{batches}  "
        first, last = int(row["step"]), int(row["step"]) + max(self.updates, 1) - 1
        is_shown = last // self.every_steps > (first - 1) // self.every_steps
        if is_shown or not self.clock.has_started:
            self.say(line)

    def say(self, line: str | Text) -> None:
        """A line of its own, above the bar; a string is shown without markup, on one line."""
        self.rich.print(plain(line) if isinstance(line, str) else line, soft_wrap=True)

    def close(self) -> None:
        """Close the bar and restore the terminal's cursor."""
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
    """Estimates the time left from medians of recent steps, and of recent batches of rollouts, each
    without the first one, which includes warm-up."""

    def __init__(self, steps: int, updates: int = 0) -> None:
        self.steps, self.updates = steps, updates
        self.has_started = self._has_sampled = False
        self.recent_seconds: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._sampling_seconds: deque[float] = deque(maxlen=_RECENT_STEPS)

    def tick(self, seconds: float) -> None:
        """Record that a step took `seconds`."""
        if self.has_started:
            self.recent_seconds.append(seconds)
        self.has_started = True

    def sampled(self, seconds: float) -> None:
        """Record that a batch of rollouts took `seconds` before its first update."""
        if self._has_sampled:
            self._sampling_seconds.append(seconds)
        self._has_sampled = True

    def left(self, step: int) -> float | None:
        """Estimated seconds of the steps after `step`; None before the first measurement."""
        if step >= self.steps:
            return 0.0
        updating = self.recent_seconds
        if not updating or (self.updates and not self._sampling_seconds):
            return None
        seconds = statistics.median(updating) * (self.steps - step)
        if self.updates:
            batches = -(-self.steps // self.updates) - -(-step // self.updates)
            seconds += statistics.median(self._sampling_seconds) * batches
        return seconds


def step_line(row: Mapping[str, float], steps: int, left: str) -> Text:
    """The log line of a step, aligned with other steps'; an empty `left` is left out."""
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
    fields += _of_policy(row)
    if "expert_balance" in row:
        fields.append(("experts", f"{row['expert_balance']:.2f}×", ""))
    if left:
        fields.append(("left", left, ""))
    return _labelled(fields)


def _of_policy(row: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Fields on the policy from the row of an update on rollouts, if it has them."""
    fields = []
    for name, label in (("entropy", "entropy"), ("kl", "KL")):
        if name in row:
            fields.append((label, _short(row[name]), ""))
    if "agreement" in row:
        fields.append(("as its teacher", _percent(row["agreement"]), ""))
    if "clip_share" in row:
        fields.append(("clipped", _percent(row["clip_share"]), ""))
    if "mismatch" in row:
        fields.append(("off by", f"{row['mismatch']:.1e}", "nats"))
    return fields


def rollouts_line(row: Mapping[str, Any], batches: int) -> Text:
    """The log line of a batch of rollouts, without missing values, such as rewards in distillation.

    right: share of scored answers that the verifier finds right; cut: share that reached the limit;
    alike: share of groups without different advantages; age: updates since its weights.
    """
    number = int(row["batch"]) + 1
    fields = [("batch", f"{number:>{len(str(batches))}}/{batches}" if batches else f"{number}", "")]
    if row.get("reward") is not None:
        fields.append(("reward", f"{row['reward']:.4f}", ""))
    for name, label in (("pass_rate", "right"), ("truncated", "cut"), ("zero_groups", "alike")):
        if row.get(name) is not None:
            fields.append((label, _percent(row[name]), ""))
    for name, label, unit in (("length", "length", ""), ("age", "age", "updates")):
        if row.get(name):
            fields.append((label, f"{row[name]:.1f}", unit))
    fields.append(("", count(row["rollout_tokens_per_second"] or 0), "tok/s"))
    fields.append(("sampled in", duration(row["seconds"]), ""))
    return _labelled([*fields, *_of_servers(row)])


def _of_servers(row: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Fields on the servers that sampled a batch; none without servers."""
    if "refit/seconds" in row:
        yield "weights in", _short(row["refit/seconds"]), "s"
    if row.get("refit/restarts"):
        yield "servers started again", count(row["refit/restarts"]), ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def source_line(source: str, width: int, row: Mapping[str, float | None]) -> Text:
    """The log line of one source's evaluation; `width` aligns the names."""
    name = f"  {source:<{width}} "
    if "answers" in row:
        return _labelled([(name, "", ""), *_of_tasks(row)])
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


def _of_tasks(row: Mapping[str, float | None]) -> Iterable[tuple[str, str, str]]:
    for name, label in (("pass_rate", "right"), ("truncated", "cut")):
        share = row[name]
        if share is not None:
            yield label, _percent(share), ""
    if row["reward"] is not None:
        yield "reward", f"{row['reward']:.4f}", ""
    yield "length", f"{row['length']:.0f}", ""
    yield "over", count(row["answers"] or 0), "answers"


def _labelled(fields: Iterable[tuple[str, str, str]]) -> Text:
    """Label, value and unit of each field; labels and units are dimmed."""
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


def _three_digits(number: float) -> str:
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"


def _short(number: float) -> str:
    """At least two significant digits: 0.83, 412, 0.018, 3.0e-04."""
    size = abs(number)
    if number and not 0.001 <= size < 1e4:
        return f"{number:.1e}"
    return f"{number:.{3 if 0 < size < 0.1 else 2 if size < 100 else 0}f}"
