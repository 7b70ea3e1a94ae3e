"""`Sandbox`: runs many programs at once, each in its own sandbox, and caches outcomes.

with Sandbox(ProgramLimits(), workers=4) as sandbox:
    outcomes = sandbox.run_all([("print(1)", ""), ("print(input())", "2")])
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from megatron_qwen3.config import ConfigError
from megatron_qwen3.cores import cores
from megatron_qwen3.posttrain.sandbox import probe, process
from megatron_qwen3.posttrain.sandbox.launch import Launcher
from megatron_qwen3.posttrain.sandbox.limits import CLOSED, TIME, ProgramLimits, ProgramOutcome
from megatron_qwen3.posttrain.sandbox.process import SandboxedProgram

_CACHED_BYTES = 64 << 20  # of programs and their output


class Sandbox:
    """Runs programs; entering it raises ConfigError where a wall does not hold.

    workers: programs that run at once, counted over all calling threads.
    """

    def __init__(self, limits: ProgramLimits | None = None, workers: int | None = None) -> None:
        self.limits = limits or ProgramLimits()
        self.workers = workers if workers is not None else cores()
        if self.workers < 1:
            raise ConfigError(f"sandbox: workers = {workers}; valid: at least 1")
        self._cache = _Cache(_CACHED_BYTES)
        self._free = threading.BoundedSemaphore(self.workers)
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        self._launcher = Launcher.found()
        self._closing.clear()
        probe.check(self._launcher, self.limits)
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox")
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._threads.shutdown(cancel_futures=True)

    def run(
        self, program: str, stdin: str = "", limits: ProgramLimits | None = None
    ) -> ProgramOutcome:
        """The outcome of a Python program; the same program and input run only once."""
        limits = limits or self.limits
        words = repr((program, stdin, limits)).encode("utf-8", "replace")
        key = hashlib.sha256(words).digest()
        found = self._cache.get(key)
        if found is None:
            with self._free:
                job = SandboxedProgram(program, stdin.encode("utf-8", "replace"))
                found = self._run(job, limits, self._closing)
            # Time-outs depend on the machine's load and are not cached.
            if not found.failure and found.killed_by not in (TIME, CLOSED):
                self._cache.put(key, found)
        return found

    def run_all(self, jobs: Sequence[tuple[str, str]]) -> list[ProgramOutcome]:
        """The outcomes of (program, stdin) pairs, in order."""
        return list(self._threads.map(lambda job: self.run(*job), jobs))

    def run_pair(
        self, first: SandboxedProgram, second: SandboxedProgram, limits: ProgramLimits
    ) -> tuple[ProgramOutcome, ProgramOutcome]:
        """Run two programs that talk through descriptors; the end of the first ends the second."""
        is_over = threading.Event()
        seconds: list[ProgramOutcome] = []
        # A program dies with the thread that started it, so each has a thread that waits for it.
        thread = threading.Thread(target=lambda: seconds.append(self._run(second, limits, is_over)))
        with self._free:
            thread.start()
            try:
                outcome = self._run(first, limits, self._closing)
            finally:
                is_over.set()
                thread.join()
        return outcome, seconds[0]

    def _run(
        self, job: SandboxedProgram, limits: ProgramLimits, is_over: threading.Event
    ) -> ProgramOutcome:
        def is_stopped() -> bool:
            return is_over.is_set() or self._closing.is_set()

        return process.run(self._launcher, limits, job, is_stopped)


class _Cache:
    """The most recently used outcomes, up to a number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._bytes = most_bytes, 0
        self._outcomes: OrderedDict[bytes, ProgramOutcome] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> ProgramOutcome | None:
        with self._lock:
            if key in self._outcomes:
                self._outcomes.move_to_end(key)
            return self._outcomes.get(key)

    def put(self, key: bytes, outcome: ProgramOutcome) -> None:
        with self._lock:
            if key not in self._outcomes:
                self._outcomes[key] = outcome
                self._bytes += _size(outcome)
            while self._bytes > self._most:
                self._bytes -= _size(self._outcomes.popitem(last=False)[1])


def _size(outcome: ProgramOutcome) -> int:
    return 500 + 4 * (len(outcome.stdout) + len(outcome.stderr))
