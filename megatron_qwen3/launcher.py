"""Which rank this process is, as its launcher says: torchrun, or srun with examples/slurm/rank.sh.

    launcher.check()                       # ConfigError where the environment says half of it
    launcher.rank(), launcher.local_rank(), launcher.world_size()  # 0, 0 and 1 without a launcher

Nothing here imports torch.
"""

import os

from megatron_qwen3.settings import ConfigError

_WHO = "torchrun sets them, as does examples/slurm/rank.sh under srun"


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Among the ranks of this machine: the number of its GPU, too."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def check() -> None:
    """ConfigError where RANK and WORLD_SIZE do not go together, or lack a place to meet."""
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
