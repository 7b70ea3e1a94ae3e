"""Processes that share out a list of calls, report what they have done, and never outlive us.

    with Pool(workers, job, show) as pool:
        for result in pool.run(tokenize_unit, [(0, unit), ...]): ...

`function(job, *arguments, tick)` calls tick(bytes) now and then; `show` gets the bytes since the
last time. The job, which may be large, goes to each process once. One worker is this process.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from data_prep.lifetime import die_with_parent
from megatron_qwen3.config import ConfigError

POLL_SECONDS = 0.25
Job = TypeVar("Job")


class Pool(Generic[Job]):
    """ConfigError where a worker is killed: what it had not finished is done by another run."""

    def __init__(self, workers: int, job: Job, show: Callable[[int], None]) -> None:
        self._job, self._show = job, show
        self._executor: ProcessPoolExecutor | None = None
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            self._bytes = context.Value("q", 0)
            self._stop = context.Event()
            self._executor = ProcessPoolExecutor(
                workers, context, initializer=_begin, initargs=(job, self._bytes, self._stop)
            )

    def run(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """The results, as they come. The first error stops the others and is raised."""
        if self._executor is None:
            for arguments in calls:
                yield function(self._job, *arguments, self._show)
            return
        pending = {self._executor.submit(_call, function, arguments) for arguments in calls}
        shown = self._bytes.value
        try:
            while pending:
                done, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
                now = self._bytes.value
                self._show(now - shown)
                shown = now
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise ConfigError(
                "a worker process was killed, maybe for want of memory (see --workers); "
                "what is done is kept: run the same command again"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._executor is not None:
            if kind is not None:
                self._stop.set()
            self._executor.shutdown(cancel_futures=True)


class _Stopped(Exception):
    """Another process failed, or the user stopped the run."""


_job: Any
_tick: Callable[[int], None]


def _begin(job: Any, count: Any, stop: Any) -> None:
    global _job, _tick
    die_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes share the cores, not threads

    def tick(amount: int) -> None:
        if stop.is_set():
            raise _Stopped
        with count.get_lock():
            count.value += amount

    _job, _tick = job, tick


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(_job, *arguments, _tick)
