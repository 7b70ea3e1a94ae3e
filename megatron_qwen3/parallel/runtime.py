"""The process groups of one run: `layout = start(config)` at the top, `stop()` at the end.

Ranks come from torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT);
without it the process is the only rank. The backend is NCCL on GPUs and gloo on CPUs; everything
after this module is the same code for both.
"""

import contextlib
import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.parallel import cpu
from megatron_qwen3.parallel.allocator import keep_freed_memory
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.planner.launch_check import Device

from megatron.core import parallel_state, tensor_parallel  # isort: skip  (after cpu)


def world_size() -> int:
    """Ranks of this run, as the launcher says; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check(config: Config) -> Layout:
    """The layout of the run; ConfigError where this machine or the world size does not fit it."""
    if config.run.device == "cuda" and cpu.REDIRECTED:
        raise ConfigError('run.device = "cuda", but torch sees no GPU; valid here: "auto", "cpu"')
    return Layout.of(config, world_size())


def device_memory(config: Config) -> Device:
    """What this rank may use: run.memory_gb, or its GPU's memory, or its share of the RAM."""
    is_gpu = not cpu.REDIRECTED
    if config.run.memory_gb:
        return Device("run.memory_gb", 1e9 * config.run.memory_gb, is_gpu)
    if is_gpu:
        device = torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", "0")))
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
    _join()
    build_groups(config, layout)
    return layout


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


def _join() -> None:
    # torch remembers the last collectives; a run that hangs says which it waits for.
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    if cpu.REDIRECTED:
        keep_freed_memory()
        backend = "gloo"
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "nccl"
    if "RANK" in os.environ:
        store, rank, ranks = next(dist.rendezvous("env://"))
        dist.init_process_group(backend, store=_of_attempt(store), rank=rank, world_size=ranks)
    else:
        address = f"tcp://localhost:{_free_port()}"
        dist.init_process_group(backend, init_method=address, rank=0, world_size=1)


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
