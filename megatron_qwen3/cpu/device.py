"""The device of this rank, and the backend of its process groups.

    check(config)               # ConfigError where the machine lacks devices that the run needs
    options = take(timeout)     # before torch's first process group

NCCL connects GPUs, gloo CPUs; all later code is the same for both.
"""

import os
import socket
from datetime import timedelta
from typing import Any

import torch

from megatron_qwen3 import launcher
from megatron_qwen3.cpu import redirect, shortcuts
from megatron_qwen3.cpu.allocator import keep_freed_memory
from megatron_qwen3.settings import Config, ConfigError


def check(config: Config) -> None:
    """ConfigError where ranks have no GPU although they should, or none of their own."""
    if not redirect.REDIRECTED:
        _check_gpu()
    elif config.run.device == "cuda":
        raise ConfigError('run.device = "cuda", but torch sees no GPU; valid here: "auto", "cpu"')


def is_gpu() -> bool:
    """Whether ranks compute on GPUs."""
    return not redirect.REDIRECTED


def take(timeout: timedelta) -> dict[str, Any]:
    """Make the device this process's own; returns arguments of init_process_group."""
    if redirect.REDIRECTED:
        keep_freed_memory()
        return {"backend": "gloo"}
    device = torch.device("cuda", launcher.local_rank())
    torch.cuda.set_device(device)
    # NCCL's second watchdog, which ends processes by itself.
    seconds = str(int(timeout.total_seconds()))
    os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", seconds)
    # Given a device, NCCL connects now, all groups share connections, and barriers need not guess.
    return {"backend": "nccl", "device_id": device}


def take_shortcuts(chunk: Any) -> None:
    """Remove passes that a CPU does not need from a DDP chunk's backward pass: see `shortcuts`."""
    if redirect.REDIRECTED:
        shortcuts.fuse_weight_gradients(chunk)
        shortcuts.gather_wide_first(chunk)


def check_gradients(chunk: Any) -> None:
    """RuntimeError where passes left an old gradient in place, which can only happen on a CPU."""
    if redirect.REDIRECTED:
        shortcuts.check_written(chunk)


def _check_gpu() -> None:
    """ConfigError where ranks have no GPU of their own."""
    seen = torch.cuda.device_count()
    ranks = max(launcher.local_rank() + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if ranks > seen:
        raise ConfigError(
            f"{ranks} ranks on {socket.gethostname()}, but torch sees {seen} GPUs there; valid: at "
            f"most {seen} ranks of one machine, each of which sees all its GPUs"
        )
