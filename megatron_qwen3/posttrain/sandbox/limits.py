"""How much a program may take of the machine, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_qwen3.config import ConfigError

TIME, CPU, MEMORY, OUTPUT = "time", "cpu", "memory", "output"
CLOSED = "closed"  # nobody waited for it any more


@dataclass(frozen=True)
class ProgramLimits:
    """seconds: of wall-clock time, once the program has begun; cpu_seconds: of each process, the
    start of about 0.02 s included. memory_bytes: address space of each process, and resident memory
    of all together. processes: with threads. disk_bytes: of /tmp; a quarter of it besides of
    /dev/shm. output_bytes: of standard output, and as many of standard error."""

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
    """What came of a program.

    status: as shells count it, 0 for success and 128 + n where signal n ended it; None where a
    limit or a failure did. killed_by: the limit, of "time", "cpu", "memory" and "output", or
    "closed" where the sandbox was closed meanwhile; else "".
    failure: why the sandbox did not run it, which is no fault of the program; else "".
    Standard output and error are cut at their limit, and are UTF-8; other bytes become U+FFFD.
    """

    status: int | None
    stdout: str
    stderr: str
    seconds: float
    killed_by: str = ""
    failure: str = ""
