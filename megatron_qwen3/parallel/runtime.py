"""The process groups of one run: `layout = start(config)` at the top, `stop()` at the end.

Ranks come from torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT);
without it the process is the only rank. The backend is NCCL on GPUs and gloo on CPUs; everything
after this module is the same code for both.
"""

import contextlib
import math
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_qwen3 import validate
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.parallel import cpu, determinism, launcher
from megatron_qwen3.parallel.allocator import keep_freed_memory
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.planner.launch_check import Device

from megatron.core import parallel_state, tensor_parallel  # isort: skip  (after cpu)


def check(config: Config) -> Layout:
    """The layout of the run; ConfigError where this machine or the world size does not fit it."""
    if config.run.device == "cuda" and cpu.REDIRECTED:
        raise ConfigError('run.device = "cuda", but torch sees no GPU; valid here: "auto", "cpu"')
    determinism.check(config)
    if not cpu.REDIRECTED:
        _check_gpu(config)
    return Layout.of(config, launcher.world_size())


def _check_gpu(config: Config) -> None:
    """ConfigError where ranks have no GPU of their own, or the model's sizes do not suit one."""
    seen = torch.cuda.device_count()
    ranks = max(_local_rank() + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if ranks > seen:
        raise ConfigError(
            f"{ranks} ranks on {socket.gethostname()}, but torch sees {seen} GPUs there; valid: at "
            f"most {seen} ranks of one machine, each of which sees all its GPUs"
        )
    if faults := validate.gpu_faults(config):
        raise ConfigError("\n".join(faults))


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def device_memory(config: Config) -> Device:
    """What this rank may use: run.memory_gb, or its GPU's memory, or its share of the RAM."""
    is_gpu = not cpu.REDIRECTED
    if config.run.memory_gb:
        return Device("run.memory_gb", 1e9 * config.run.memory_gb, is_gpu)
    if is_gpu:
        device = torch.cuda.get_device_properties(_local_rank())
        return Device(f"a {device.name}", float(device.total_memory), is_gpu)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    share = "the RAM" if ranks == 1 else f"RAM that each of {ranks} ranks has"
    return Device(share, _ram_bytes() / ranks, is_gpu)


def _ram_bytes() -> float:
    """Memory of this machine, or of the container that limits it."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):
        total = min(total, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def start(config: Config) -> Layout:
    """Join the run: check it, set the device, build megatron-core's process groups."""
    layout = check(config)
    determinism.begin(config)
    _join(patience(config))
    build_groups(config, layout)
    return layout


def patience(config: Config) -> timedelta:
    """How long a collective waits for its other ranks before torch ends the process.

    Longer than a hang lasts until `hang.py` has said where each rank stands, for which torch's own
    ten minutes on NCCL are too short. Where nothing is a hang, a year.
    """
    seconds = config.guard.hang_seconds
    return timedelta(seconds=seconds) + timedelta(minutes=30) if seconds else timedelta(days=365)


def build_groups(config: Config, layout: Layout) -> None:
    """megatron-core's process groups and random states, once torch has a group of all ranks."""
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual if layout.virtual > 1 else None,
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=layout.expert_tensor,
        create_gloo_process_groups=False,
        distributed_timeout_minutes=math.ceil(patience(config).total_seconds() / 60),
    )
    seed(config.run.seed)


def seed(number: int) -> None:
    """Seed every random generator of this rank: those of tensor ranks differ where they must.

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
    # torch remembers the last collectives; a run that hangs says which it waits for.
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    options: dict[str, Any] = {"backend": "gloo", "timeout": timeout}
    if cpu.REDIRECTED:
        keep_freed_memory()
    else:
        device = torch.device("cuda", _local_rank())
        torch.cuda.set_device(device)
        # With a device NCCL connects now, all groups share its connections, and no barrier guesses.
        options |= {"backend": "nccl", "device_id": device}
        # A second watchdog of NCCL's, which ends processes by itself.
        seconds = str(int(timeout.total_seconds()))
        os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", seconds)
    if "RANK" in os.environ:
        store, rank, ranks = next(dist.rendezvous("env://"))
        dist.init_process_group(store=_of_attempt(store), rank=rank, world_size=ranks, **options)
    else:
        address = f"tcp://localhost:{_free_port()}"
        dist.init_process_group(init_method=address, rank=0, world_size=1, **options)


def _of_attempt(store: dist.Store) -> dist.Store:
    """The launcher's store, without what the ranks before a restart left in it.

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
