"""Ranks with Transformer Engine, its kernels stood in: `run_te_ranks(function, world_size, …)`.

As `run_ranks`, in processes of their own: megatron-core looks for Transformer Engine once, while it
is imported, and then takes its optimizer in every run. So its packages are installed apart, in
.venv-te, and a server beside pytest, started by the first call, forks ranks that have it. The
process of pytest, and its own ranks, never see it.
"""

import atexit
import functools
import os
import pickle
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from tests.ranks import RankError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ROOT / ".venv-te"
"""The folder in which the Makefile installs Transformer Engine's Python and its packages."""


def run_te_ranks(function, world_size, *args, timeout_seconds=200, fused_attention=False):
    """The results of `function(*args)` on each rank; RankError as of `run_ranks`.

    fused_attention: Transformer Engine takes cuDNN's attention, stood in, where it takes bf16.
    """
    server = _server()
    environment = {"QWEN3_TE_FUSED": str(int(fused_attention))}
    asked = function.__module__, function.__qualname__, args
    server.send((sys.path, world_size, timeout_seconds, environment, pickle.dumps(asked)))
    results, error = server.recv()
    if error:
        raise RankError(error)
    return pickle.loads(results)


@functools.cache
def _server() -> Connection:
    ours, theirs = Pipe()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.te.te_server", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env=environment,
        cwd=ROOT,
    )
    theirs.close()
    atexit.register(_stop, process, ours)
    return ours


def _stop(process, connection) -> None:
    connection.close()  # which the server reads as its end
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
