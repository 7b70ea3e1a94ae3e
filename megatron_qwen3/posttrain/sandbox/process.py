"""Runs one program from start to end: reads its output and watches its limits.

    outcome = run(launcher, limits, SandboxedProgram(program, b"stdin"))

Killing the first process of a PID namespace kills all processes in it, however they hide. The
kernel does the rest: the program dies with the thread that called `run`, also after kill -9.
"""

import contextlib
import fcntl
import os
import select
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from megatron_qwen3.posttrain.sandbox.harness import RUN
from megatron_qwen3.posttrain.sandbox.launch import Launcher
from megatron_qwen3.posttrain.sandbox.limits import (
    CLOSED,
    CPU,
    MEMORY,
    OUTPUT,
    TIME,
    ProgramLimits,
    ProgramOutcome,
)

_WATCH_SECONDS = 0.05  # between two looks at memory
_START_SECONDS = 60.0  # for the walls, on a busy machine
_END_SECONDS = 5.0  # for the kernel to end a killed process
_INODE_BYTES = 1200  # of a tmpfs file and its name
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class SandboxedProgram:
    """A program and its standard input.

    harness: source that runs it. arguments: of the harness, after the descriptor on which it
    reports its start. descriptors: open ones that it inherits; running the job closes them here.
    """

    program: str
    stdin: bytes = b""
    harness: str = RUN
    arguments: tuple[str, ...] = ()
    descriptors: tuple[int, ...] = ()


def run(
    launcher: Launcher,
    limits: ProgramLimits,
    job: SandboxedProgram,
    is_stopped: Callable[[], bool] = lambda: False,
) -> ProgramOutcome:
    """Run a job to its end, to the first limit that it reaches, or until `is_stopped`."""
    started = time.monotonic()
    try:
        with _started(launcher, limits, job) as (process, begun):
            watched = _Watched(process, begun, limits, is_stopped)
            try:
                watched.read(job.stdin)
            finally:
                watched.end()
    except OSError as error:  # no process or descriptor left
        return _failed(str(error), time.monotonic() - started)
    return watched.outcome(time.monotonic() - started)


def pipe() -> tuple[int, int]:
    """(end to read, end to write) that a job can inherit: above the numbers that the shell within
    uses."""
    ends = os.pipe2(os.O_CLOEXEC)
    try:
        read, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    finally:
        for end in ends:
            os.close(end)
    return read, write


@contextlib.contextmanager
def _started(
    launcher: Launcher, limits: ProgramLimits, job: SandboxedProgram
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The process, and the read end of a pipe that gets a byte once the harness has begun."""
    with contextlib.ExitStack() as stack:
        with _given_away(job.descriptors):
            program = _memory(stack, job.program.encode("utf-8", "replace"))
            filter = _memory(stack, launcher.filter)
            begun, begins = pipe()
            stack.callback(os.close, begun)
            arguments = (str(begins), *job.arguments)
            with os.fdopen(begins, "wb"):
                process = subprocess.Popen(
                    launcher.command(limits, program, filter, job.harness, arguments),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=(program, filter, begins, *job.descriptors),
                    start_new_session=True,
                    cwd="/",
                    env={},
                )
        stack.callback(_end_unwatched, process)
        os.set_blocking(begun, False)
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            stack.callback(_close, stream)
            os.set_blocking(stream.fileno(), False)
        yield process, begun


def _end_unwatched(process: subprocess.Popen[bytes]) -> None:
    """End a process that could not be watched; its program dies with its parent."""
    if process.returncode is None:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)


@contextlib.contextmanager
def _given_away(descriptors: Sequence[int]) -> Iterator[None]:
    """Close our copies once the process has them, so that readers of the other end see its end."""
    try:
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _memory(stack: contextlib.ExitStack, content: bytes) -> int:
    """A descriptor from which the content can be read."""
    descriptor = os.memfd_create("sandbox", os.MFD_CLOEXEC)
    stack.callback(os.close, descriptor)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _has_byte(descriptor: int) -> bool:
    try:
        return bool(os.read(descriptor, 1))
    except BlockingIOError:
        return False


class _Watched:
    """A process that is read and watched. killed_by: its limit, or why we ended it.

    begun: a descriptor that gets a byte when the program begins; from then on its time counts.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        begun: int,
        limits: ProgramLimits,
        is_stopped: Callable[[], bool],
    ) -> None:
        self.process, self.limits, self.is_stopped = process, limits, is_stopped
        self.killed_by, self.cpu_seconds, self.is_begun, self._begun = "", 0.0, False, begun
        self.output = {"stdout": bytearray(), "stderr": bytearray()}
        self._descriptor = os.pidfd_open(process.pid)

    def read(self, stdin: bytes) -> None:
        """Write its input and read its output until it ends or reaches a limit."""
        process, rest, looked = self.process, memoryview(stdin), 0.0
        end = time.monotonic() + _START_SECONDS
        assert process.stdin and process.stdout and process.stderr
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ, "stdout")
            selector.register(process.stderr, selectors.EVENT_READ, "stderr")
            selector.register(process.stdin, selectors.EVENT_WRITE, "stdin")
            selector.register(self._descriptor, selectors.EVENT_READ, "ended")
            selector.register(self._begun, selectors.EVENT_READ, "begun")
            while not self.killed_by:
                ready = {str(key.data): key for key, _ in selector.select(_WATCH_SECONDS)}
                for name in self.output.keys() & ready.keys():
                    if not self._take(name, ready[name].fd):
                        selector.unregister(ready[name].fileobj)
                if "stdin" in ready and not (rest := _written(process.stdin, rest)):
                    selector.unregister(process.stdin)
                    _close(process.stdin)
                if "begun" in ready:
                    selector.unregister(self._begun)
                    self.is_begun = _has_byte(self._begun)
                    end = time.monotonic() + self.limits.seconds
                if "ended" in ready:
                    break
                if (now := time.monotonic()) - looked >= _WATCH_SECONDS:
                    looked = now
                    self.killed_by = self._reached(now >= end)
        for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            while not self.killed_by and self._take(name, pipe.fileno()):
                pass

    def end(self) -> None:
        """Kill it and all that it started, unless it has ended, and wait until they are gone."""
        for kill in (_kill_within, _kill_group):
            if not select.select([self._descriptor], [], [], 0)[0]:
                kill(self.process.pid)
                select.select([self._descriptor], [], [], _END_SECONDS)
        # A child that was being made while bwrap was killed waits for it, and has no namespace yet.
        _kill_group(self.process.pid)
        os.close(self._descriptor)
        self.is_begun = self.is_begun or _has_byte(self._begun)
        pid, status, used = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            raise OSError("it does not end, though it was killed")
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_seconds = used.ru_utime + used.ru_stime

    def outcome(self, seconds: float) -> ProgramOutcome:
        stdout, stderr = (bytes(out).decode("utf-8", "replace") for out in self.output.values())
        status = self.process.returncode
        if self.killed_by and not self.is_begun:
            return _failed(f"{self.killed_by} before the program began", seconds)
        if not self.killed_by and not self.is_begun:
            return _failed(stderr.strip()[-300:] or f"status {status} before it began", seconds)
        if not self.killed_by and status < 0:
            return _failed(f"it was ended from outside, by signal {-status}", seconds)
        killed_by = self.killed_by or self._cpu_limit(status)
        return ProgramOutcome(None if killed_by else status, stdout, stderr, seconds, killed_by)

    def _cpu_limit(self, status: int) -> str:
        by_kernel = status in (128 + signal.SIGKILL, 128 + signal.SIGXCPU)
        return CPU if by_kernel and self.cpu_seconds > 0.9 * self.limits.cpu_seconds else ""

    def _take(self, name: str, descriptor: int) -> bool:
        """Read available output; False at its end, or where none is available yet."""
        try:
            more = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return False
        output = self.output[name]
        output += more
        if len(output) > self.limits.output_bytes:
            del output[self.limits.output_bytes :]
            self.killed_by = OUTPUT
        return bool(more)

    def _reached(self, is_late: bool) -> str:
        if self.is_stopped():
            return CLOSED
        if is_late:
            return TIME
        used = _resident_bytes(self.process.pid) + _inode_bytes(self.process.pid)
        return MEMORY if used > self.limits.memory_bytes else ""


def _written(pipe: IO[bytes], rest: memoryview) -> memoryview:
    """The part still to be written; empty where the reader is gone."""
    try:
        return rest[os.write(pipe.fileno(), rest) :] if rest else rest
    except BlockingIOError:
        return rest
    except OSError:
        return rest[:0]


def _close(pipe: IO[bytes]) -> None:
    with contextlib.suppress(OSError):
        pipe.close()


def _failed(reason: str, seconds: float) -> ProgramOutcome:
    return ProgramOutcome(None, "", "", seconds, failure=reason)


def _kill_within(pid: int) -> None:
    """Kill the first process of its namespace, or bwrap itself before there is one."""
    children = _children(pid)
    for child in children or [pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def _resident_bytes(pid: int) -> int:
    """Of a process and its descendants, without pages shared with files."""
    total = 0
    with contextlib.suppress(OSError), open(f"/proc/{pid}/statm", encoding="ascii") as file:
        _, resident, shared, *_ = map(int, file.read().split())
        total = (resident - shared) * _PAGE
    return total + sum(map(_resident_bytes, _children(pid)))


def _inode_bytes(pid: int) -> int:
    """Kernel memory for files, even empty ones, which the size of /tmp does not count."""
    paths = [
        (f"/proc/{child}/root{folder}", folder)
        for child in _children(pid)[:1]
        for folder in ("/tmp", "/dev/shm")
    ]
    return sum(_files_within(within, folder) for within, folder in paths) * _INODE_BYTES


def _files_within(within: str, folder: str) -> int:
    """Number of files of the file system there; 0 where it is the machine's own `folder`, whose
    files take no memory of this program. Both are read from one descriptor: while the walls are put
    up, a path may lead elsewhere from one moment to the next."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        descriptor = os.open(within, os.O_PATH | os.O_DIRECTORY)
        stack.callback(os.close, descriptor)
        if os.fstat(descriptor).st_dev != os.stat(folder).st_dev:
            found = os.fstatvfs(descriptor)
            return found.f_files - found.f_ffree
    return 0
