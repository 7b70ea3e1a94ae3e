"""Shares a list of calls among processes that report their progress and never outlive us.

    with Pool(workers, job, __name__) as pool:
        for result in pool.run(tokenize_unit, [(0, unit), ...], bar.advance): ...

`function(job, *arguments, tick)` calls tick(count) now and then, of bytes or any unit of the
bar, which gets the ticks since the last time. The job, which may be large, goes to each
process once. One worker is this process. On the first error the others are killed: their
calls may be done again.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, Generic, Protocol, Self, TypeVar

from data_prep.documents import FilePart
from data_prep.lifetime import die_with_parent
from megatron_qwen3.config import ConfigError

POLL_SECONDS = 0.25
_AHEAD = 4  # calls for each worker that wait for one: looking at them all takes as long as they are
Job = TypeVar("Job")
Tick = Callable[[int], None]


def unheard(_: int) -> None:
    """The tick of work that nobody watches."""


class Share(Protocol):
    """Some of a part of a file. progress: the share of the part that is read with it."""

    @property
    def progress(self) -> float: ...


Read = TypeVar("Read", bound=Share)


def ticking(batches: Iterable[Read], part: FilePart, tick: Tick) -> Iterator[Read]:
    """The batches of a part; after each is worked on, `tick` learns how many bytes it was."""
    size, done = part.end - part.start, 0
    for batch in batches:
        yield batch
        now = int(batch.progress * size)
        tick(now - done)
        done = now


class Pool(Generic[Job]):
    """ConfigError where a worker is killed: another run does its unfinished calls.

    module: that of the functions, which workers find imported.
    """

    def __init__(self, workers: int, job: Job, module: str) -> None:
        self._job = job
        self._executor: ProcessPoolExecutor | None = None
        self._most = _AHEAD * workers
        if workers > 1:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([module])
            self._count = context.Value("q", 0)
            self._executor = ProcessPoolExecutor(
                workers, context, initializer=_begin, initargs=(job, self._count)
            )

    def run(
        self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], show: Tick
    ) -> Iterator[Any]:
        """The results, as they come. The first error is raised."""
        if self._executor is None:
            for arguments in calls:
                yield function(self._job, *arguments, show)
            return
        waiting, pending = iter(calls), set[Future[Any]]()
        shown = self._count.get_obj().value  # not its lock, with which a worker may be killed
        try:
            while True:
                for arguments in islice(waiting, self._most - len(pending)):
                    pending.add(self._executor.submit(_call, function, arguments))
                if not pending:
                    return
                done, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
                now = self._count.get_obj().value
                show(now - shown)
                shown = now
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise ConfigError(
                "a worker was killed, perhaps for want of memory: take fewer --workers; "
                "what is done is kept, and the same command goes on"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._executor is None:
            return
        if kind is not None:
            for worker in multiprocessing.active_children():
                worker.kill()
        self._executor.shutdown(cancel_futures=True)


_job: Any
_tick: Tick


def _begin(job: Any, count: Any) -> None:
    global _job, _tick
    die_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes share the cores, not threads

    def tick(amount: int) -> None:
        with count.get_lock():
            count.value += amount

    _job, _tick = job, tick


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(_job, *arguments, _tick)
