"""Real gloo ranks for tests: `results = run_ranks(function, world_size, *args)`.

`function` is a module-level function; every rank calls it with the same arguments and a launcher's
environment, so that `parallel.runtime.start(config)` works as it does under torchrun. Ranks are
forked from a server that imports their modules once per session (`preloaded.py`): eight of
them start in about a second. Where a forked process cannot use the GPU, since something that was
imported has touched it, they are spawned. Their results come back as a list in rank order.
"""

import contextlib
import faulthandler
import functools
import multiprocessing
import os
import pickle
import sys
import time
import traceback
from multiprocessing.connection import Connection, wait

import torch
import torch.distributed as dist

# Whether there is a GPU is asked of its driver's library: torch's usual way takes hold of the GPU,
# and no process that is forked later can use it.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(["tests.preloaded"])


class RankError(AssertionError):
    """A rank raised, died or did not answer; the text has its number and its traceback."""


def run_ranks(function, world_size, *args, timeout_seconds=120):
    """The results of `function(*args)` on each of `world_size` ranks, in rank order.

    The first error of any rank is raised here as RankError, and the other ranks are killed, as
    they are when some do not answer in time; where these stand is then on stderr. A function joins
    the process group at most once.
    """
    # The store stays open for the whole call, so that no one else can take its port in between.
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    pipes, processes, context = [], [], start_method()
    for rank in range(world_size):
        ours, theirs = context.Pipe()
        environment = _environment(rank, world_size, store.port)
        target_args = (theirs, environment, timeout_seconds, function, args)
        processes.append(context.Process(target=_rank_main, args=target_args))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        return _collect(pipes, processes, timeout_seconds)
    finally:
        for process in processes:
            process.kill()
            process.join()


@functools.cache
def start_method():
    """multiprocessing's context that ranks are started by."""
    if not torch.cuda.is_available():
        return forkserver
    probe = forkserver.Process(target=_use_gpu)
    probe.start()
    probe.join(120)
    if probe.exitcode == 0:
        return forkserver
    probe.kill()
    return multiprocessing.get_context("spawn")


def _use_gpu():
    torch.cuda.init()
    torch.ones(1, device=torch.device("cuda", 0)).sum().item()


def _environment(rank, world_size, port):
    """Variables that torchrun sets; with its agent store no rank opens a server of its own."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def _collect(pipes, processes, timeout_seconds):
    deadline = time.monotonic() + timeout_seconds
    results = {}
    while len(results) < len(pipes):
        waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results}
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            silent = ", ".join(str(rank) for rank in waiting.values())
            raise RankError(
                f"no answer from rank {silent} of {len(pipes)} within {timeout_seconds} s; "
                "stderr says where they stood"
            )
        answers = {waiting[pipe]: _receive(pipe, processes[waiting[pipe]]) for pipe in ready}
        _raise_first_error(answers, len(pipes))
        results |= {rank: pickle.loads(answer[1]) for rank, answer in answers.items()}
    return [results[rank] for rank in range(len(pipes))]


def _receive(pipe: Connection, process):
    """(when it was sent, pickled result, traceback or None)."""
    try:
        return pipe.recv()
    except EOFError:
        process.join()
        return time.monotonic(), b"", f"died without a word, exit code {process.exitcode}"


def _raise_first_error(answers, world_size):
    errors = sorted((sent, rank, text) for rank, (sent, _, text) in answers.items() if text)
    if errors:
        _, rank, text = errors[0]
        raise RankError(f"rank {rank} of {world_size}: {text}")


def _rank_main(pipe, environment, timeout_seconds, function, args):
    os.environ.update(environment)
    faulthandler.dump_traceback_later(0.9 * timeout_seconds, file=sys.__stderr__)
    torch.set_num_threads(1)
    result, error = b"", None
    try:
        # Tensors as bytes: torch's own way through shared memory would outlive the rank.
        result = pickle.dumps(function(*args))
    except BaseException:
        error = traceback.format_exc()
    pipe.send((time.monotonic(), result, error))
    faulthandler.cancel_dump_traceback_later()
    # Stay until the test has heard from all: a rank that leaves fails the ranks that talk to it.
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()
