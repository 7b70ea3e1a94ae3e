"""Brings the current weights to servers of vLLM, by a shared folder or by a process group.

    made = write(weights, folder, most_bytes, leads)              # all ranks
    send(weights, receivers, exchange, most_bytes, leads)         # all ranks

Both take the model bucket by bucket (`gather.py`) and send each worker names, shapes and checksums,
so that a server can check that it has the trainer's weights (`in_server/mq3_refit.py`). Errors of
the first rank alone are returned, not raised, because the other ranks are still sending to it.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from megatron_qwen3.convert import hf_config
from megatron_qwen3.convert.hf_writer import Sink
from megatron_qwen3.parallel.first import of_first
from megatron_qwen3.posttrain.generators.replies import RequestRefused
from megatron_qwen3.posttrain.rollouts.gather import Bucket, Gathered
from megatron_qwen3.posttrain.rollouts.in_server.mq3_refit import Link, Table, checksum
from megatron_qwen3.posttrain.rollouts.vllm_client import Client, Died
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.storage.whole import whole_folder

Waiting = Callable[[], AbstractContextManager[object]]
PATIENCE_SECONDS = 120.0  # limit for workers to join, and for each message
_LAST_WORDS_SECONDS = 20.0
_POLL_SECONDS = 0.01


@dataclass
class WrittenWeights:
    """Weights in a folder. fault: why writing failed; "" where it did not."""

    table: Table
    checksums: list[int] = field(default_factory=list)
    fault: str = ""


def bytes_of(table: Table) -> int:
    return sum(prod(shape) * getattr(torch, dtype).itemsize for _, shape, dtype in table)


def write_config(config: Config, folder: Path) -> None:
    """Write config.json of the model in training, which servers start from."""
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[config.train.precision]
    shutil.rmtree(folder, ignore_errors=True)
    with whole_folder(folder) as beside:
        length = config.data.sequence_length
        hf_config.write_config(beside, config.model, config.rope, length, dtype, {})


def write(
    weights: Gathered,
    folder: Path,
    most_bytes: int,
    leads: bool,
    alive: Callable[[], None] = lambda: None,
) -> WrittenWeights:
    """Replace a folder by the current weights, as files of safetensors; all ranks call it.

    leads: true on the first rank, which alone writes and has the result; alive: per bucket.
    """
    made, buckets = (
        WrittenWeights(weights.table if leads else []),
        weights.buckets(most_bytes, alive),
    )
    if leads:
        try:
            _write(made, folder, buckets)
        except (OSError, ConfigError) as error:
            made.fault = f"{folder} cannot be written: {error}"
    for _ in buckets:  # even after a failure here, the others send to the end
        pass
    return made


def _write(made: WrittenWeights, folder: Path, buckets: Any) -> None:
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
    """Servers that get weights by a group. faults: why the n-th one failed; "" where it did not.

    workers: for each server, the number of processes that share its model; checksums: of the sent
    tensors. met: whether all servers joined: if one does not, the others get no weights, without a
    fault of theirs.
    """

    clients: Sequence[Client]
    workers: Sequence[int]
    faults: list[str] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    met: bool = False


class RefitExchange(NamedTuple):
    """way: "gloo" or "nccl"; host: the first rank's address for servers; seconds: the first rank's
    limit for a message."""

    way: str
    host: str
    seconds: float


def patience(config: Config) -> float:
    """Seconds for each message of an exchange: at most half the hang limit, so that a stuck server
    is given up before the run is."""
    hang = config.guard.hang_seconds
    return min(PATIENCE_SECONDS, hang / 2) if hang else PATIENCE_SECONDS


def send(
    weights: Gathered,
    to: Receivers,
    exchange: RefitExchange,
    most_bytes: int,
    leads: bool,
    alive: Callable[[], None] = lambda: None,
    waiting: Waiting = nullcontext,
) -> None:
    """Broadcast the current weights to all workers of some servers; all ranks call it.

    alive: called for each bucket; waiting: a context that ranks hold while servers join and while
    they pack the weights. `to.faults` and `to.checksums` are filled on the first rank.
    """
    sender = _Sender(weights, to, exchange, most_bytes) if leads else None

    def meet() -> bool:
        assert sender is not None
        return sender.meet()

    try:
        with waiting():
            has_met = of_first(meet)
        if has_met:
            buckets = weights.buckets(most_bytes, alive)
            if sender:
                sender.send(buckets)
            for _ in buckets:  # even after a failure of the first rank, the others send to the end
                pass
    finally:
        if sender:
            with waiting():
                sender.end()


class _Sender:
    """The first rank's side of an exchange: `meet`, then `send` if that was true, then `end`."""

    def __init__(
        self, weights: Gathered, to: Receivers, exchange: RefitExchange, most_bytes: int
    ) -> None:
        self._to, self._exchange, self._fault = to, exchange, ""
        self._tables = [weights.rows(units) for units in weights.plan(most_bytes)]
        self._pool, self._calls = ThreadPoolExecutor(len(to.clients)), list[Future[Any]]()

    def meet(self) -> bool:
        """Have all workers join; returns whether they did.

        Waits as long as a busy machine needs, but not for a worker whose server has already
        answered with an error.
        """
        self._call()
        until = time.monotonic() + PATIENCE_SECONDS
        while not (here := self._link.all_are_here()) and time.monotonic() < until:
            if any(call.done() for call in self._calls):
                break
            time.sleep(_POLL_SECONDS)
        if here:
            self._try(self._link.join)
        else:
            self.give_up("not all workers came")
        self._to.met = not self._fault
        return self._to.met

    def send(self, buckets: Iterator[Bucket]) -> None:
        """Send all buckets; stops at a worker that does not take one."""

        def all_of_them() -> None:
            for bucket in buckets:
                sums = [checksum(tensor) for tensor in bucket.tensors.values()]
                self._to.checksums += sums
                self._link.send(torch.tensor(sums, device=bucket.flat.device), seconds)
                self._link.send(bucket.flat, seconds)

        seconds = self._exchange.seconds
        self._try(all_of_them)

    def end(self) -> None:
        """Collect each server's reply. After a broken exchange a silent server is not waited for:
        it may be stuck."""
        wait(self._calls, _LAST_WORDS_SECONDS if self._fault else None)
        faults = [_fault(call, self._fault) for call in self._calls]
        self._to.faults = faults if any(faults) else [self._fault] * len(faults)
        self._pool.shutdown(wait=False)

    def give_up(self, why: str) -> None:
        """End the exchange; waiting servers get an error."""
        self._fault = f"the exchange broke off ({why})"
        self._link.close()

    def _call(self) -> None:
        way, host, _ = self._exchange
        size = 1 + sum(self._to.workers)
        self._link = Link(host, 0, 0, size, way, PATIENCE_SECONDS)
        about = {"host": host, "port": self._link.port, "size": size, "backend": way}
        about |= {"seconds": PATIENCE_SECONDS, "buckets": self._tables}
        for number, client in enumerate(self._to.clients):
            first = 1 + sum(self._to.workers[:number])
            call = self._pool.submit(client.call, "mq3_from_group", first=first, **about)
            self._calls.append(call)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except RuntimeError as error:  # torch: a worker left, or did not answer
            self.give_up(str(error).strip().splitlines()[0])


def _fault(call: Future[Any], broken: str = "") -> str:
    """Why a server did not take its weights; "" where it did, or its weights are unchanged.

    broken: why the exchange broke off, if it did.
    """
    if not call.done():
        return broken
    try:
        workers = call.result()
    except (Died, RequestRefused) as error:
        return str(error) or type(error).__name__
    return "" if all("unbegun" in worker for worker in workers) else broken


def together(checksums: Sequence[int]) -> int:
    """One checksum of all, below 2^48, so that a column of metrics holds it exactly."""
    return int.from_bytes(hashlib.sha256(repr(list(checksums)).encode()).digest()[:6], "big")
