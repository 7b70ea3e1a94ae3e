"""Detects bad batches, and leaves them out of the run.

    guard = Guard(config, progress)
    step = guard.next_step(step)                     # jumps over batches that are left out
    metrics = engine.train_step(batch, loss, rate, guard.limits())      # may raise BadBatch
    guard.accept(metrics)
    guard.leave_out(first_step, last_step, reason)

A batch is bad where its loss or gradient is NaN or infinite, or a spike: far above the median of
earlier steps. Both numbers are equal on every rank, so all decide alike. A step's number decides
its batch, so leaving out a batch means not taking its step: learning rate and data go on as if it
had been taken. The list of left-out steps is written to the run folder before the run goes on, and
into every checkpoint, together with the losses and norms for the medians: so a resumed run decides
as an undisturbed one would have.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.storage.inside import parse_json
from megatron_qwen3.storage.whole import write_whole
from megatron_qwen3.training.bad_batch import NO_LIMITS, BadBatch, StepLimits
from megatron_qwen3.training.progress import LeftOut, Progress

FILE_NAME = "left_out.jsonl"
_SHORT = 4  # steps of a short median
_FEWEST_STEPS = 16  # for a median: the first steps of a run differ too much


class Guard:
    """The record of steps so far on each rank, and the decisions from it. progress: at the start.

    ConfigError: the run folder's list of left-out batches cannot be read.
    """

    def __init__(self, config: Config, progress: Progress) -> None:
        self.settings, self._steps = config.guard, config.steps
        self.recent = list(progress.recent)
        # A new run meets its bad batches itself; a list in its folder is of another run.
        ledger = _read(config.run_dir / FILE_NAME) if progress.step else []
        self.left_out = sorted({*progress.left_out, *ledger})
        self._ledger = config.run_dir / FILE_NAME

    def progress(self, step: int) -> Progress:
        """The run's progress after `step` steps."""
        return Progress(step, tuple(self.left_out), tuple(self.recent))

    def next_step(self, step: int) -> int:
        """`step`, or the first after it whose batch is not left out; at most the run's last."""
        wanted = step
        for first, last, _ in self.left_out:
            if first <= wanted <= last:
                wanted = last + 1
        return max(step, min(wanted, self._steps))

    def limits(self) -> StepLimits:
        if len(self.recent) < _FEWEST_STEPS:
            return NO_LIMITS
        loss, norm = map(statistics.median, zip(*self.recent, strict=True))
        above, times = self.settings.loss_spike, self.settings.grad_spike
        return StepLimits(loss + above if above else math.inf, norm * times if times else math.inf)

    def accept(self, metrics: Mapping[str, float]) -> None:
        """Record the loss and norm of a step that was taken."""
        self.recent.append((metrics["loss"], metrics["grad_norm"]))
        del self.recent[: -self.settings.window_steps]

    def leave_out(self, first: int, last: int, reason: str, writes: bool) -> str:
        """Never train steps first … last; the rank that `writes` records that for all.

        Returns text to log. BadBatch where there were too many bad batches of late.
        """
        told = ""
        self.left_out = sorted({*self.left_out, LeftOut(first, last, reason)})
        if writes:
            lines = (f"{json.dumps(entry._asdict())}\n".encode() for entry in self.left_out)
            try:
                write_whole(self._ledger, lines)
            except OSError as error:  # a full disk; every checkpoint has the list, too
                told = f"; {self._ledger} cannot be written ({error.strerror})"
        window, most = self.settings.window_steps, self.settings.most_bad_batches
        of_late = [entry for entry in self.left_out if entry.last > last - window]
        if len(of_late) > most:
            raise BadBatch(
                f"{reason}; that is {len(of_late)} bad batches within {window} steps, and "
                f"guard.most_bad_batches = {most}: look at the data, or lower optim.lr"
            )
        return told


def rise(recent: Sequence[tuple[float, float]]) -> float:
    """How far, in nats, these losses end above their minimum.

    Medians of _SHORT steps are compared, since a single step is noisy.
    """
    losses = [loss for loss, _ in recent]
    ends = range(_SHORT, len(losses) + 1)
    medians = [statistics.median(losses[end - _SHORT : end]) for end in ends]
    return medians[-1] - min(medians) if medians else 0.0


def _read(path: Path) -> list[LeftOut]:
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [LeftOut(**parse_json(line)) for line in lines]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not a list of batches left out: {error}") from None
