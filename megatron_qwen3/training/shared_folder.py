"""Checks before the first step that all ranks see the same run folder.

    check_shared(config.run_dir)           # on all ranks

With a run.dir on each node's own disk a run would train to the end and fail in every save, as the
first rank would not find the others' parts.
"""

import os
import secrets
import socket
import time
from pathlib import Path

import torch.distributed as dist

from megatron_qwen3.settings import ConfigError
from megatron_qwen3.storage.manifest import write_durably

PATIENCE_SECONDS = 60.0  # for another node's new file; NFS caches names for half a minute
_SHOWN = 8  # hosts


def check_shared(run_dir: Path, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Make the folder; ConfigError on all ranks where one does not see the first rank's file."""
    token = [secrets.token_hex(8), socket.gethostname(), ""]
    is_first = dist.get_rank() == 0
    if is_first:
        token[2] = _written(run_dir, token[0])
    dist.broadcast_object_list(token, src=0)
    text, host, error = token
    if error:
        raise ConfigError(f"run.dir, run.name: {error}")
    mine = "" if _is_seen(run_dir, text, patience_seconds) else socket.gethostname()
    blind = [""] * dist.get_world_size()
    dist.all_gather_object(blind, mine)
    if is_first:
        _path(run_dir, text).unlink(missing_ok=True)
    if hosts := sorted({name for name in blind if name}):
        more = f" and {len(hosts) - _SHOWN} more" if len(hosts) > _SHOWN else ""
        ranks = sum(map(bool, blind))
        raise ConfigError(
            f"run.dir: {ranks} ranks, on {', '.join(hosts[:_SHOWN])}{more}, cannot write to "
            f"{run_dir} where rank 0 on {host} does; valid: a folder that all nodes share"
        )


def _path(run_dir: Path, token: str) -> Path:
    return run_dir / f"probe_{token}"


def _written(run_dir: Path, token: str) -> str:
    """Write the token into the folder; returns the error, or ""."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_durably(_path(run_dir, token), token)
    except OSError as error:
        return f"{error.filename or run_dir} cannot be written: {error.strerror}"
    return ""


def _is_seen(run_dir: Path, token: str, patience_seconds: float) -> bool:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            if _path(run_dir, token).read_text(encoding="utf-8") == token:
                return os.access(run_dir, os.W_OK | os.X_OK)
        except (OSError, UnicodeDecodeError):
            pass  # not visible yet, or never
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
