"""The process groups of one run: `layout = start(config)` at the top, `stop()` at the end.

Ranks come from torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT);
without it the process is the only rank. The backend is NCCL on GPUs and gloo on CPUs; everything
after this module is the same code for both.
"""

import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_qwen3 import launcher
from megatron_qwen3.cpu import device
from megatron_qwen3.parallel import determinism, fp8, overlap
from megatron_qwen3.parallel.groups import ProcessGroups
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.parallel.mcore import parallel_state, tensor_parallel
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.validate import gpu_faults


def check(config: Config) -> Layout:
    """The layout of the run; ConfigError where this machine or the world size does not fit it."""
    device.check(config)
    if device.is_gpu() and (faults := gpu_faults(config)):
        raise ConfigError("\n".join(faults))
    fp8.check(config)
    overlap.check(config)
    determinism.check(config)
    return Layout.of(config, launcher.world_size())


def start(config: Config) -> Layout:
    """Join the run: check it, set the device, build megatron-core's process groups."""
    layout = check(config)
    determinism.begin(config)
    _join(patience(config))
    build_groups(config, layout)
    return layout


def patience(config: Config) -> timedelta:
    """The time that a collective waits for other ranks before torch ends the process.

    Longer than `hang.py` needs to report where each rank is in a hang, for which torch's own
    ten minutes on NCCL are too short. Where nothing is a hang, a year.
    """
    seconds = config.guard.hang_seconds
    return timedelta(seconds=seconds) + timedelta(minutes=30) if seconds else timedelta(days=365)


def build_groups(config: Config, layout: Layout) -> None:
    """The run's process groups and random states, once torch has a group of all ranks."""
    ProcessGroups.make(layout, patience(config))
    seed(config.run.seed)


def seed(number: int) -> None:
    """Seed every random generator of this rank: tensor ranks get different states where needed.

    A loop that seeds by its step's number before every step can be resumed at any, in any layout,
    and no checkpoint holds a generator's state.
    """
    torch.manual_seed(number)
    tensor_parallel.model_parallel_cuda_manual_seed(number)


def stop() -> None:
    """Leave the run."""
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def _join(timeout: timedelta) -> None:
    # torch records the last collectives, so that a hanging run can report its own.
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    options = {"timeout": timeout} | device.take(timeout)
    if "RANK" in os.environ:
        store, rank, ranks = next(dist.rendezvous("env://"))
        dist.init_process_group(store=_of_attempt(store), rank=rank, world_size=ranks, **options)
    else:
        address = f"tcp://localhost:{_free_port()}"
        dist.init_process_group(init_method=address, rank=0, world_size=1, **options)


def _of_attempt(store: dist.Store) -> dist.Store:
    """The launcher's store, apart from entries that ranks left before a restart.

    torchrun starts killed ranks again with the same store, and a rank that reads the address of
    its neighbour's predecessor waits for ever. Nodes may count restarts differently: with several
    of them, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes torchrun open a new store.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        return store
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt_{attempt}", store)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])
