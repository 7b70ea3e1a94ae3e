"""Runs cases in child processes, so that one that crashes or hangs ends alone.

Cases of a part share a process, which imports torch once; a case that raises, dies or takes too
long ends it, and the next one gets a fresh one: after a fault of a GPU nothing that the process
says of it can be believed. A killed child takes its own children along.
"""

import contextlib
import faulthandler
import importlib
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from on_gpu.cases import CPU, Case, LeftOut, Options, Report
from on_gpu.record import (
    DIED,
    ERROR,
    FAILED,
    LEFT_OUT,
    NOT_BEGUN,
    PASSED,
    TIMED_OUT,
    Record,
)

START_SECONDS = 90.0  # until a case begins: its process imports torch, from a cold disk at worst
PATIENCE_OF_CPU = 10.0  # times a GPU's: it is shared with others
STAND_IN = "tests.te.te_preloaded"  # a child that imports it has Transformer Engine, without a GPU
LEAST_SECONDS = 5.0  # with less time left nothing is begun
_KILL_SECONDS = 10.0  # a process that waits for a broken GPU cannot be killed at once
_LAST_LINES = 12  # of a traceback, that the record keeps


class Runner:
    """Runs cases until the time is over. `told` hears of each case that has ended.

    context: of multiprocessing, for the children; log: the file that gets their output.
    """

    def __init__(
        self,
        options: Options,
        record: Record,
        seconds: float,
        log: Path,
        context: Any,
        told: Callable[[Case, dict[str, Any]], None],
    ) -> None:
        self.options, self.record, self.log, self.context = options, record, log, context
        self.told = told
        self.patience = PATIENCE_OF_CPU if options.device == "cpu" else 1.0
        self.end = time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        """Until nothing may run any more."""
        return self.end - time.monotonic()

    def run(self, cases: Sequence[Case]) -> None:
        """Each case that is not over yet, in order; those of one part and place in one process.

        A case that it needs is run again: its files went with the call that ran it.
        """
        not_over = [case for case in cases if not self.record.is_over(case)]
        needed = {(case.part, name) for case in not_over for name in case.after}
        waiting = [c for c in cases if c in not_over or (c.part, c.name) in needed]
        while waiting:
            together = takewhile(partial(_shares_process, waiting[0]), waiting)
            waiting = waiting[self._run_together(list(together)) :]

    def _run_together(self, cases: Sequence[Case]) -> int:
        """Run cases in one child until one of them ends it; how many are over."""
        with contextlib.ExitStack() as stack:
            child = None
            for number, case in enumerate(cases, 1):
                if reason := self._reason_against(case):
                    self._finish(case, *reason)
                    continue
                child = child or stack.enter_context(
                    _child(self.context, self.options, self.log, case)
                )
                status, why = self._follow(child, case)
                self._finish(case, status, why)
                if status not in (PASSED, FAILED, LEFT_OUT):
                    return number
        return len(cases)

    def _reason_against(self, case: Case) -> tuple[str, str] | None:
        """Why a case cannot begin: no time, or something that it needs."""
        if self.seconds_left < max(LEAST_SECONDS, case.least_seconds):
            return NOT_BEGUN, "too little time was left"
        known = self.record.parts.get(case.part, {})
        for name in case.after:
            if known.get(name, {}).get("status") != PASSED:
                return NOT_BEGUN, f"needs {name}, which did not go well"
        return None

    def _follow(self, child: "_Child", case: Case) -> tuple[str, str]:
        """How a case ends, and why; its messages until then go into the record."""
        self.record.begin(case)
        begin, limit = time.monotonic(), START_SECONDS
        try:
            child.pipe.send(case)
            while child.pipe.poll(max(0.0, min(begin + limit, self.end) - time.monotonic())):
                kind, content = child.pipe.recv()
                if kind == "begin":
                    begin, limit = time.monotonic(), case.seconds * self.patience
                elif kind == "report":
                    self.record.add(case, content)
                else:
                    self.record.put(case, seconds=round(time.monotonic() - begin, 2))
                    return kind, content
        except (EOFError, OSError):
            return DIED, child.last_words()
        own = begin + limit < self.end
        whose = "its limit" if own else "the end of all time there was"
        return TIMED_OUT, f"killed after {time.monotonic() - begin:.0f} s, {whose}"

    def _finish(self, case: Case, status: str, why: str = "") -> None:
        self.record.put(case, status=status, **({"why": why} if why else {}))
        self.told(case, self.record.of(case))


def _shares_process(first: Case, other: Case) -> bool:
    return (first.part, first.where) == (other.part, other.where)


class _Child:
    """A process that runs the cases it is sent."""

    def __init__(self, pipe: Connection, process: Any) -> None:
        self.pipe, self.process = pipe, process

    def last_words(self) -> str:
        """How it ended, when it no longer answers."""
        self.process.join(_KILL_SECONDS)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"ended by {signal.Signals(-code).name}; its output is in the log"
        return f"ended with status {code}; its output is in the log"

    def kill(self) -> None:
        """End it, and all that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join(_KILL_SECONDS)


@contextlib.contextmanager
def _child(context: Any, options: Options, log: Path, first: Case) -> Iterator[_Child]:
    """A child for cases of the part and place of `first`; it does not outlive the block."""
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, options, log))
    with _environment({"CUDA_VISIBLE_DEVICES": ""} if first.where == CPU else {}):
        process.start()
    theirs.close()
    child = _Child(ours, process)
    try:
        yield child
    finally:
        child.kill()
        ours.close()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables that processes started within the block get."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _work(pipe: Connection, options: Options, log: Path) -> None:
    """Body of a child: the cases that it is sent, until one raises."""
    os.setpgrp()  # to be killed with all that it starts
    faulthandler.enable()
    with log.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    if options.stand_in:
        importlib.import_module(STAND_IN)
    with contextlib.suppress(EOFError):
        while _run_case(pipe, options, pipe.recv()):
            pass


def _run_case(pipe: Connection, options: Options, case: Case) -> bool:
    """Whether the process is still good for another case."""
    print(f"== {case.part}: {case.name}", flush=True)
    report = Report(lambda message: pipe.send(("report", message)))
    try:
        function = case.function  # imports its modules, which is no part of its time
        pipe.send(("begin", ""))
        function(options, report, **case.settings)
    except LeftOut as reason:
        pipe.send((LEFT_OUT, str(reason)))
        return True
    except BaseException as error:
        traceback.print_exc()
        pipe.send((ERROR, _last_lines(error)))
        return False
    pipe.send((FAILED, "; ".join(report.failed)) if report.failed else (PASSED, ""))
    return True


def _last_lines(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    return "\n".join(lines[-_LAST_LINES:])
