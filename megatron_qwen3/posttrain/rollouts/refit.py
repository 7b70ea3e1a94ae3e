"""The weights of now on their way to servers of vLLM, by a shared folder or by a process group.

    made = write(weights, folder, most_bytes, leads)          # all ranks
    send(weights, receivers, way, host, most_bytes, leads)    # all ranks

Both take the model bucket by bucket (`gather.py`) and tell each worker what comes, names, shapes
and checksums, so that a server knows whether it has what the trainer has
(`in_server/mq3_refit.py`). What goes wrong on the first rank alone is returned, not raised: the
others are in the middle of sending to it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch

from megatron_qwen3.convert import hf_config
from megatron_qwen3.convert.hf_writer import Sink
from megatron_qwen3.posttrain.replies import Refused
from megatron_qwen3.posttrain.rollouts.gather import Gathered
from megatron_qwen3.posttrain.rollouts.in_server.mq3_refit import Link, Table, checksum
from megatron_qwen3.posttrain.rollouts.vllm_client import Client, Died
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.storage.whole import whole_folder

Waiting = Callable[[], AbstractContextManager[object]]
PATIENCE_SECONDS = 120.0  # for each message of an exchange


@dataclass
class Written:
    """Weights in a folder. fault: why they are not; "" where they are."""

    table: Table
    checksums: list[int] = field(default_factory=list)
    fault: str = ""


def bytes_of(table: Table) -> int:
    return sum(prod(shape) * getattr(torch, dtype).itemsize for _, shape, dtype in table)


def write_config(config: Config, folder: Path) -> None:
    """config.json of the model in training, which servers start by."""
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[config.train.precision]
    shutil.rmtree(folder, ignore_errors=True)
    with whole_folder(folder) as beside:
        hf_config.write_config(beside, config.model, config.data.sequence_length, dtype, {})


def write(
    weights: Gathered,
    folder: Path,
    most_bytes: int,
    leads: bool,
    alive: Callable[[], None] = lambda: None,
) -> Written:
    """Replace a folder by the weights of now, as files of safetensors; all ranks call it.

    leads: on the first rank, which alone writes, and has the result; alive: of each bucket.
    """
    made, buckets = Written(weights.table if leads else []), weights.buckets(most_bytes, alive)
    if leads:
        try:
            _write(made, folder, buckets)
        except (OSError, ConfigError) as error:
            made.fault = f"{folder} cannot be written: {error}"
    for _ in buckets:  # whatever failed here, the others send to the end
        pass
    return made


def _write(made: Written, folder: Path, buckets: Any) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    needed, free = bytes_of(made.table), shutil.disk_usage(folder.parent).free
    if free < needed:
        raise ConfigError(
            f"{needed / 1e9:.1f} GB of weights, and {free / 1e9:.1f} GB are free there; set "
            'rollouts.vllm.folder to another place, or rollouts.vllm.refit = "gloo"'
        )
    with whole_folder(folder) as beside:
        rows = ((name, tuple(shape), getattr(torch, dtype)) for name, shape, dtype in made.table)
        sink = Sink(beside, rows)
        try:
            for bucket in buckets:
                for name, tensor in bucket.tensors.items():
                    made.checksums.append(checksum(tensor))
                    sink.write(name, 0, tensor.reshape(-1).view(torch.uint8).cpu().numpy())
        finally:
            sink.close()


@dataclass
class Receivers:
    """Servers that get weights by a group. faults: why the n-th one did not; "" where it did."""

    clients: Sequence[Client]
    workers: Sequence[int]
    faults: list[str] = field(default_factory=list)


def send(
    weights: Gathered,
    to: Receivers,
    way: str,
    host: str,
    most_bytes: int,
    leads: bool,
    alive: Callable[[], None] = lambda: None,
    waiting: Waiting = nullcontext,
) -> None:
    """Broadcast the weights of now to all workers of some servers; all ranks call it.

    way: "gloo" or "nccl"; host: the first rank's address for them; alive: of each bucket; waiting:
    what the first rank is in until servers have taken them. `to.faults` is filled on the first
    rank.
    """
    buckets = weights.buckets(most_bytes, alive)
    if leads:
        try:
            _send(weights, to, way, host, most_bytes, buckets, waiting)
        except RuntimeError as error:  # of torch: a worker left, or did not come
            first = str(error).strip().splitlines()[0]
            to.faults = [fault or f"the exchange broke off ({first})" for fault in to.faults]
    for _ in buckets:
        pass


def _send(
    weights: Gathered,
    to: Receivers,
    way: str,
    host: str,
    most_bytes: int,
    buckets: Any,
    waiting: Waiting,
) -> None:
    size = 1 + sum(to.workers)
    to.faults = [""] * len(to.clients)
    link = Link(host, 0, 0, size, way, PATIENCE_SECONDS)
    tables = [weights.rows(units) for units in weights.plan(most_bytes)]
    with ThreadPoolExecutor(len(to.clients)) as pool:
        calls: list[Future[Any]] = []
        first = 1
        for client, workers in zip(to.clients, to.workers, strict=True):
            arguments = {"host": host, "port": link.port, "first": first, "size": size}
            arguments |= {"backend": way, "seconds": PATIENCE_SECONDS, "buckets": tables}
            calls.append(pool.submit(client.call, "mq3_from_group", **arguments))
            first += workers
        try:
            link.join()
            for bucket in buckets:
                sums = [checksum(tensor) for tensor in bucket.tensors.values()]
                link.send(torch.tensor(sums, device=bucket.flat.device))
                link.send(bucket.flat)
        except RuntimeError:
            link.close()  # before they are waited for: they wait for us
            raise
        finally:
            with waiting():
                to.faults = [_fault(call) for call in calls]


def _fault(call: Future[Any]) -> str:
    try:
        call.result()
    except (Died, Refused) as error:
        return str(error) or type(error).__name__
    return ""
