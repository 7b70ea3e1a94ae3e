"""Limits of a program in the sandbox, and the outcome of running it."""

from dataclasses import dataclass

from megatron_qwen3.config import ConfigError

TIME, CPU, MEMORY, OUTPUT = "time", "cpu", "memory", "output"
CLOSED = "closed"  # the sandbox was closed


@dataclass(frozen=True)
class ProgramLimits:
    """seconds: wall-clock time from the program's start; cpu_seconds: of each process, including
    its start of about 0.02 s. memory_bytes: address space of each process, and resident memory of
    all together. processes: with threads. disk_bytes: of /tmp, and a quarter as much of /dev/shm.
    output_bytes: of standard output, and as many of standard error."""

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 30
    processes: int = 16
    disk_bytes: int = 32 << 20
    output_bytes: int = 1 << 20
    files: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"sandbox: {name} = {value}; valid: above 0")


@dataclass(frozen=True)
class ProgramOutcome:
    """The outcome of a program.

    status: as shells count it, 0 for success and 128 + n after signal n; None where a limit or a
    failure ended it. killed_by: the limit, of "time", "cpu", "memory" and "output", or "closed"
    where the sandbox was closed meanwhile; else "".
    failure: why the sandbox did not run it, which is not the program's fault; else "".
    Standard output and error are cut at their limit and are UTF-8; other bytes become U+FFFD.
    """

    status: int | None
    stdout: str
    stderr: str
    seconds: float
    killed_by: str = ""
    failure: str = ""
