"""The weights of now on their way to servers of vLLM, by a shared folder or by a process group.

    made = write(weights, folder, most_bytes, leads)              # all ranks
    send(weights, receivers, exchange, most_bytes, leads)         # all ranks

Both take the model bucket by bucket (`gather.py`) and tell each worker what comes, names, shapes
and checksums, so that a server knows whether it has what the trainer has
(`in_server/mq3_refit.py`). What goes wrong on the first rank alone is returned, not raised: the
others are in the middle of sending to it.
"""

from __future__ import annotations

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
from megatron_qwen3.posttrain.replies import RequestRefused
from megatron_qwen3.posttrain.rollouts.gather import Bucket, Gathered
from megatron_qwen3.posttrain.rollouts.in_server.mq3_refit import Link, Table, checksum
from megatron_qwen3.posttrain.rollouts.vllm_client import Client, Died
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.storage.whole import whole_folder

Waiting = Callable[[], AbstractContextManager[object]]
PATIENCE_SECONDS = 120.0  # that workers may need to come, and each message at most
_LAST_WORDS_SECONDS = 20.0
_POLL_SECONDS = 0.01


@dataclass
class WrittenWeights:
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
        length = config.data.sequence_length
        hf_config.write_config(beside, config.model, config.rope, length, dtype, {})


def write(
    weights: Gathered,
    folder: Path,
    most_bytes: int,
    leads: bool,
    alive: Callable[[], None] = lambda: None,
) -> WrittenWeights:
    """Replace a folder by the weights of now, as files of safetensors; all ranks call it.

    leads: on the first rank, which alone writes, and has the result; alive: of each bucket.
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
    for _ in buckets:  # whatever failed here, the others send to the end
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
    """Servers that get weights by a group. faults: why the n-th one did not; "" where it did.

    workers: of each, how many processes share its model; checksums: of what was sent. met: whether
    anything was: where one server does not come, the others have no fault, and no weights.
    """

    clients: Sequence[Client]
    workers: Sequence[int]
    faults: list[str] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    met: bool = False


class RefitExchange(NamedTuple):
    """way: "gloo" or "nccl"; host: the first rank's address for servers; seconds: after which the
    first rank gives a message up."""

    way: str
    host: str
    seconds: float


def patience(config: Config) -> float:
    """Seconds for each message of an exchange: half of what would be a hang at most, so that a
    server which is stuck is given up before the run is."""
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
    """Broadcast the weights of now to all workers of some servers; all ranks call it.

    alive: of each bucket; waiting: what ranks are in while servers come, and have yet to pack what
    they got. `to.faults` and `to.checksums` are filled on the first rank.
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
            for _ in buckets:  # whatever failed on the first rank, the others send to the end
                pass
    finally:
        if sender:
            with waiting():
                sender.end()


class _Sender:
    """The first rank's side of an exchange: `meet`, `send` where that was true, `end`."""

    def __init__(
        self, weights: Gathered, to: Receivers, exchange: RefitExchange, most_bytes: int
    ) -> None:
        self._to, self._exchange, self._fault = to, exchange, ""
        self._tables = [weights.rows(units) for units in weights.plan(most_bytes)]
        self._pool, self._calls = ThreadPoolExecutor(len(to.clients)), list[Future[Any]]()

    def meet(self) -> bool:
        """Have all workers come; whether they did.

        They are waited for as long as a busy machine needs, but not where the server of one has
        said that it will not.
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
        """Give them all buckets, or fewer where one does not take them."""

        def all_of_them() -> None:
            for bucket in buckets:
                sums = [checksum(tensor) for tensor in bucket.tensors.values()]
                self._to.checksums += sums
                self._link.send(torch.tensor(sums, device=bucket.flat.device), seconds)
                self._link.send(bucket.flat, seconds)

        seconds = self._exchange.seconds
        self._try(all_of_them)

    def end(self) -> None:
        """Hear what each server says of it. One that says nothing is not waited for where the
        exchange broke off: it may be stuck."""
        wait(self._calls, _LAST_WORDS_SECONDS if self._fault else None)
        faults = [_fault(call, self._fault) for call in self._calls]
        self._to.faults = faults if any(faults) else [self._fault] * len(faults)
        self._pool.shutdown(wait=False)

    def give_up(self, why: str) -> None:
        """End the exchange: servers hear of it."""
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
        except RuntimeError as error:  # of torch: a worker left, or did not answer
            self.give_up(str(error).strip().splitlines()[0])


def _fault(call: Future[Any], broken: str = "") -> str:
    """Why a server did not take its weights; "" where it did, or nothing of it was touched.

    broken: why the exchange broke off, where it did.
    """
    if not call.done():
        return broken
    try:
        workers = call.result()
    except (Died, RequestRefused) as error:
        return str(error) or type(error).__name__
    return "" if all("unbegun" in worker for worker in workers) else broken


def together(checksums: Sequence[int]) -> int:
    """One number of all of them, below 2^48: a column of metrics holds it exactly."""
    return int.from_bytes(hashlib.sha256(repr(list(checksums)).encode()).digest()[:6], "big")
