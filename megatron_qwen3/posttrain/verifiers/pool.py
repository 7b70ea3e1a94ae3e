"""Worker processes that judge answers, killed where one takes too long.

    with Verifiers(workers=4, seconds=30) as verifiers:
        verdicts = verifiers.judge(pairs)    # in the order of the pairs; from any thread
        line = verifiers.alarm()

The limit is enforced from outside, by SIGKILL: signals reach only the main thread of a process, and
not while C code runs. A killed worker is replaced by a new one.
"""

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.verifiers.kinds import Spec, Verdict, own_seconds
from megatron_qwen3.processes import isolated

ALARM_FRACTION = 0.01  # of verdicts without a score
TIME_OUT = "time-out"  # the reason of such a verdict begins with it
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
_START_SECONDS = 300.0  # to import a kind's modules, on a busy machine


class Verifiers:
    """A pool of workers. judged, errors, time_outs: numbers of verdicts so far, of all threads."""

    def __init__(self, workers: int = 4, seconds: float = 30.0) -> None:
        if workers < 1 or seconds <= 0:
            raise ConfigError(
                f"verifiers: workers = {workers}, seconds = {seconds}; valid: at least 1, above 0"
            )
        self.workers, self.seconds = workers, seconds
        self.judged = self.errors = self.time_outs = 0
        self._counting = threading.Lock()

    def __enter__(self) -> Self:
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all = [_Worker(self.seconds) for _ in range(self.workers)]
        for worker in self._all:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="verifiers")
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.end()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._all:
            worker.reap()

    def judge(self, pairs: Iterable[tuple[Spec, str]]) -> list[Verdict]:
        """The verdicts of (spec, the model's text with its thinking), in the order of the pairs.

        ValueError for a spec that is not JSON. Verdicts report all other errors.
        """
        jobs = [
            (json.dumps([spec, text]).encode() + b"\n", self.seconds + own_seconds(spec))
            for spec, text in pairs
        ]
        return list(self._threads.map(lambda job: self._judge(*job), jobs))

    def alarm(self) -> str:
        """A warning where more than 1 % of the verdicts have no score, else ""."""
        failed = self.errors + self.time_outs
        if failed <= ALARM_FRACTION * self.judged:
            return ""
        return (
            f"{failed:,} of {self.judged:,} answers could not be judged: {self.errors:,} errors, "
            f"{self.time_outs:,} time-outs after {self.seconds:g} s"
        )

    def _judge(self, job: bytes, seconds: float) -> Verdict:
        worker = self._idle.get()
        try:
            verdict = worker.judge(job, seconds)
        finally:
            self._idle.put(worker)
        with self._counting:
            self.judged += 1
            if verdict.score is None:
                is_late = verdict.reason.startswith(TIME_OUT)
                self.time_outs += is_late
                self.errors += not is_late
        return verdict


class _Worker:
    """A process that judges one answer at a time; started when first needed."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""  # rest of its output
        self._starting = threading.Lock()
        self._is_ended = False

    def judge(self, job: bytes, seconds: float) -> Verdict:
        """The verdict of one job; a worker that gives none is killed."""
        try:
            process = self._started()
            assert process.stdin is not None
            process.stdin.write(job)
            process.stdin.flush()
            if self._line(_START_SECONDS) != b"ready":
                raise OSError("it did not take the job")
            score, reason = json.loads(self._line(seconds))
            return Verdict(score, reason)
        except TimeoutError as error:
            self.reap()
            return Verdict(None, f"{TIME_OUT}: no verdict after {error} s")
        except (OSError, ValueError) as error:
            status = self.reap()
            return Verdict(None, f"error: the worker ended with status {status}: {error}")
        except BaseException:
            self.reap()  # its pipe may hold a part of a verdict
            raise

    def end(self) -> None:
        """Kill the process, even while another thread waits for it; no new one is started."""
        with self._starting:
            self._is_ended = True
            if self._process is not None:
                self._process.kill()

    def reap(self) -> int | None:
        """Kill the process and forget it; returns its status."""
        process, self._process, self._unread = self._process, None, b""
        if process is None:
            return None
        process.kill()
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # unread input
                assert pipe is not None
                pipe.close()
        return status

    def _started(self) -> subprocess.Popen[bytes]:
        with self._starting:
            if self._is_ended:
                raise OSError("the verifiers were closed")
            if self._process is None:
                module = "megatron_qwen3.posttrain.verifiers.worker"
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, str(self.seconds)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=isolated() | _ONE_THREAD,
                    start_new_session=True,  # Ctrl-C is for the parent
                )
            return self._process

    def _line(self, seconds: float) -> bytes:
        """The next line of its output. TimeoutError; OSError where its output ended."""
        assert self._process is not None and self._process.stdout is not None
        descriptor, end = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._unread:
            if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"{seconds:g}")
            more = os.read(descriptor, 1 << 16)
            if not more:
                raise OSError("its output ended")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line
