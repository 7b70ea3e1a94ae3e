"""Reads this process's rank from its launcher: torchrun, or srun with examples/slurm/rank.sh.

    launcher.check()                       # ConfigError where variables are missing
    launcher.rank(), launcher.local_rank(), launcher.world_size()  # 0, 0 and 1 without a launcher
    launcher.tell(f"error: {error}")       # one rank of each machine prints the error there

Nothing here imports torch.
"""

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path

from megatron_qwen3.settings import ConfigError
from megatron_qwen3.shown import shown_lines
from megatron_qwen3.storage.whole import write_whole

_WHO = "torchrun sets them, as does examples/slurm/rank.sh under srun"


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """The rank among those of this machine, which is also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def tell(message: str) -> None:
    """Print an error: rank 0's as it is, with its host from the first rank of another machine.

    The error may concern one machine alone, or the environment itself. torchrun, which prints a
    long traceback of its own afterwards, repeats the message at its end.
    """
    record(message)
    if os.environ.get("RANK", "0") == "0":
        print(shown_lines(message), file=sys.stderr)
    elif os.environ.get("LOCAL_RANK") == "0":
        print(shown_lines(f"{socket.gethostname()}: {message}"), file=sys.stderr)


def record(message: str) -> None:
    """Write the cause of a failure where torchrun looks for it; the format is torch's."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"py_callstack": shown_lines(message), "timestamp": str(int(time.time()))}
        content = {"message": {"message": shown_lines(message), "extraInfo": extra}}
        with contextlib.suppress(OSError):
            write_whole(Path(path), [json.dumps(content).encode()])


def check() -> None:
    """Raise ConfigError where RANK and WORLD_SIZE conflict, or have no address to meet at."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        if not os.environ.get(name, "0").isdecimal():
            raise ConfigError(f"{name} = {os.environ[name]!r} is not a whole number; {_WHO}")
    given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE") if name in os.environ}
    if "RANK" not in given and world_size() == 1:
        return
    if len(given) == 1:
        ((name, text),) = given.items()
        lacks = "WORLD_SIZE" if name == "RANK" else "RANK"
        raise ConfigError(f"{name} = {text} without {lacks}: {_WHO}; for one rank, unset {name}")
    if rank() >= world_size():
        raise ConfigError(
            f"RANK = {rank()} of WORLD_SIZE = {world_size()}: ranks count from 0; {_WHO}"
        )
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise ConfigError(
                f"RANK = {rank()} without {name}, where the ranks meet; torchrun sets it, as does "
                "examples/slurm/train.sbatch"
            )
