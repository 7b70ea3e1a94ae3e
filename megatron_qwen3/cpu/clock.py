"""Measures the forward and backward passes of a step on this rank's device."""

import time
from typing import Any

import torch

from megatron_qwen3.cpu import redirect


class ComputeClock:
    """Stands in for megatron-core's timers, and adds up only forward and backward passes.

    On a GPU the times are those of events, read once per step when the device is done anyway.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[Any, Any]] = []
        self._begin: Any = None
        self._busy = False

    def __call__(self, name: str, log_level: int | None = None) -> "ComputeClock":
        self._busy = name in ("forward-compute", "backward-compute")
        return self

    def start(self, barrier: bool = False) -> None:
        if self._busy:
            self._begin = _now()

    def stop(self, barrier: bool = False) -> None:
        if self._busy:
            self._spans.append((self._begin, _now()))

    def restart(self) -> None:
        """Forget all measurements."""
        self._spans = []

    def seconds(self) -> float:
        """The sum since the restart."""
        spans = self._spans
        if redirect.REDIRECTED:
            return sum(end - begin for begin, end in spans)
        if spans:
            spans[-1][1].synchronize()  # only the last pass, not the update after it
        return sum(begin.elapsed_time(end) for begin, end in spans) / 1000


def _now() -> Any:
    if redirect.REDIRECTED:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
