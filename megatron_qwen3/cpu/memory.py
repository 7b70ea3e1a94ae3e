"""Memory of this rank's device: its size and use, and host copies of its tensors.

of_rank(config)       # bytes that a run may use
gpu_memory()          # bytes that it uses, for the log
host_copy(bytes)      # host memory for copies of a device's tensors
"""

import contextlib
import os
from pathlib import Path

import torch
from torch import Tensor

from megatron_qwen3 import launcher
from megatron_qwen3.cpu import redirect
from megatron_qwen3.settings import Config


def gpu_memory() -> dict[str, float]:
    """Bytes of this rank's GPU, {} on a CPU.

    memory_peak_bytes: the peak of tensors' memory since the start;
    memory_reserved_bytes: taken by torch from the GPU, and not available to others.
    """
    if redirect.REDIRECTED:
        return {}
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved()
    return {"memory_peak_bytes": float(peak), "memory_reserved_bytes": float(reserved)}


def host_copy(size: int) -> Tensor:
    """`size` bytes of host memory to copy tensors of the device to: pinned where it is a GPU."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=not redirect.REDIRECTED)


def of_rank(config: Config) -> tuple[str, float, bool]:
    """The memory that a rank may use: its name in texts, its bytes, whether it is a GPU's.

    run.memory_gb, or the GPU's memory, or the rank's share of the RAM.
    """
    is_gpu = not redirect.REDIRECTED
    if config.run.memory_gb:
        return "run.memory_gb", 1e9 * config.run.memory_gb, is_gpu
    if is_gpu:
        device = torch.cuda.get_device_properties(launcher.local_rank())
        return f"a {device.name}", float(device.total_memory), is_gpu
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    share = "the RAM" if ranks == 1 else f"RAM that each of {ranks} ranks has"
    return share, _ram_bytes() / ranks, is_gpu


def _ram_bytes() -> float:
    """Memory of this machine, or of the container that limits it."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):
        total = min(total, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total
