"""Rollouts from servers of vLLM: `with VllmEngine(config, model, …) as engine`.

    with VllmEngine(config, run.engine.model, ends, budget_of) as engine:   # all ranks
        engine.refit(version=0)
        made = engine.sample(asks)

Only the first rank talks to the servers; the others send it their weights and get the answers. A
server whose weights are old, since the model was updated or the server restarted, gets the current
ones before it is asked anything, and then has to agree with the model in training on fixed prompts
(`canary.py`). Errors of the first rank are raised on all.
"""

import hashlib
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import urlsplit

import torch.distributed as dist

from megatron_qwen3.generate.thinking import ThinkingBudget
from megatron_qwen3.parallel.first import of_first
from megatron_qwen3.posttrain.generators.replies import RequestRefused
from megatron_qwen3.posttrain.rollouts import canary, refit
from megatron_qwen3.posttrain.rollouts.gather import Gathered
from megatron_qwen3.posttrain.rollouts.packed import packed, unpacked
from megatron_qwen3.posttrain.rollouts.rollout import Ask, Rollout
from megatron_qwen3.posttrain.rollouts.vllm_batch import DONE, WAITING, WORD_SECONDS, AskBatch
from megatron_qwen3.posttrain.rollouts.vllm_client import Died
from megatron_qwen3.posttrain.rollouts.vllm_fleet import Fleet, Member
from megatron_qwen3.posttrain.rollouts.vllm_server import MODEL_FOLDER
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.training.model import Model

T = TypeVar("T")
_SHARED_MEMORY = Path("/dev/shm")
_WEIGHTS = "weights"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class Refits:
    """Metrics of the last refit. bytes, tensors: of the weights; checksum: of all, confirmed
    by the servers; seconds: from the first check to the last server's agreement, check_seconds of
    them for the check; difference: the largest, of log-probabilities; restarts: of servers in this
    run. Only the first rank knows checksum and restarts."""

    bytes: int = 0
    tensors: int = 0
    checksum: int = 0
    seconds: float = 0.0
    check_seconds: float = 0.0
    difference: float = 0.0
    restarts: int = 0


class VllmEngine:
    """A RolloutEngine. ConfigError, on all ranks, where servers do not start, keep dying, or
    disagree."""

    def __init__(
        self,
        config: Config,
        model: Model,
        ends: Sequence[int],
        budget_of: Callable[[int], ThinkingBudget],
        beat: Callable[[], None] = lambda: None,
        alive: Callable[[], None] = lambda: None,
        waiting: refit.Waiting = nullcontext,
        everywhere: bool = True,
    ) -> None:
        """ends: ids that end an answer; budget_of: makes a thinking budget of a number of tokens;
        beat: called now and then on all ranks while they wait for answers, and may raise to end
        that; alive: called while servers start and for each bucket of weights; waiting: a context
        that all ranks hold while servers load weights or answer, which have limits of their own;
        everywhere: whether all ranks get the samples, or only the first."""
        self._config, self._model = config, model
        self._ends = tuple(sorted(set(ends)))
        self._budget_of, self._beat = budget_of, beat
        self._alive, self._waiting = alive, waiting
        self._leads, self._version = dist.get_rank() == 0, -1
        self._gets_rollouts = everywhere or self._leads
        self._given: tuple[int, int] | None = None  # version, and the model's number of updates
        self._folder = folder_of(config)
        self._written: refit.WrittenWeights | None = (
            None  # the current weights, if a folder has them
        )
        self._prompts = canary.prompts_of(config)
        self.refits = Refits()

    def __enter__(self) -> Self:
        self._weights = Gathered(self._model)
        table = self._weights.table
        self.refits.bytes, self.refits.tensors = refit.bytes_of(table), len(table)
        on_cpu = self._model.device.type == "cpu"
        self._fleet = Fleet(self._config, on_cpu, self._folder, _tell)

        def start() -> None:
            refit.write_config(self._config, self._folder / MODEL_FOLDER)
            self._fleet.start()

        try:
            of_first(start)
            while not of_first(lambda: self._fleet.are_up(WORD_SECONDS)):
                self._alive()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def urls(self) -> list[str]:
        """Addresses of the servers; known to the first rank only."""
        return [member.client.url for member in self._fleet.members]

    def sample(self, asks: Sequence[Ask]) -> list[list[Rollout]]:
        """The samples of each ask, by the last refit's weights. All ranks call it alike."""
        if self._version < 0:
            raise RuntimeError("servers have no weights yet: refit comes first")
        batch = AskBatch(asks, self._config, self._ends, self._budget_of)
        try:
            while (state := of_first(lambda: batch.work(self._fleet, self._version))) != DONE:
                self._beat()
                if state == WAITING:
                    self._bring_up_to_date(time.monotonic())
            self.refits.restarts = self._fleet.restarted
            arrays = of_first(lambda: packed(batch.rollouts()))
            return unpacked(asks, arrays) if self._gets_rollouts else []
        finally:
            batch.close()

    def refit(self, version: int) -> dict[str, float]:
        """Give all servers the current weights, unless they have them. All ranks call it.

        ConfigError where a server's log-probabilities differ from the model's.
        """
        began, check = time.monotonic(), 0.0
        now = (version, self._model.weights_version)
        if now != self._given:
            self._of_servers(self._outdate)
            self._given, self._version, self._written = now, version, None
            check = time.monotonic() - began
        self._bring_up_to_date(began, check)
        return asdict(self.refits)

    def _outdate(self) -> None:
        """Have servers read the check's prompts with their old weights, so that a stale cache
        shows."""
        known = [m for m in self._fleet.members if m.version is not None and m.is_up]
        self._tried(known, lambda m: self._canary(m, 1))
        for member in self._fleet.members:
            member.version = None

    def _bring_up_to_date(self, began: float, check: float = 0.0) -> None:
        """Give the current weights to the servers that lack them; a server that fails is restarted.

        began: time of the request; check: seconds since then that the check took.
        """
        while numbers := self._of_servers(self._paused):
            reached = self._transfer(numbers)
            going = self._of_servers(partial(self._go_on, reached))
            asked = time.monotonic()
            if answers := self._of_servers(partial(self._answers, going)):
                self._compare(answers)
            check += time.monotonic() - asked
            self.refits.check_seconds, self.refits.seconds = check, time.monotonic() - began

    def _of_servers(self, ask: Callable[[], T]) -> T:
        """`ask` of the first rank, its result on all; servers have time limits of their own."""
        with self._waiting():
            return of_first(ask)

    def _paused(self) -> list[int]:
        """Numbers of servers that need weights, have checked the table, and are paused."""
        self._fleet.look()
        waiting = self._fleet.waiting(self._version)

        def pause(member: Member) -> None:
            member.workers = member.client.check(self._weights.table)
            member.client.pause()

        return self._numbers(self._each(waiting, pause))

    def _numbers(self, members: Sequence[Member]) -> list[int]:
        return [self._fleet.members.index(member) for member in members]

    def _transfer(self, numbers: list[int]) -> list[int]:
        """Send the current weights to these servers; returns those that loaded them. All ranks call
        it."""
        settings, members = self._config.rollouts.vllm, self._fleet.members
        chosen = [members[n] for n in numbers]
        if settings.refit == "folder":
            if self._written is None:
                self._write(settings.bucket_bytes)

            def load() -> list[int]:
                return self._numbers(self._each(chosen, self._load))

            return self._of_servers(load)
        to = refit.Receivers([m.client for m in chosen], [m.workers for m in chosen])
        patience = refit.patience(self._config)
        exchange = refit.RefitExchange(settings.refit, host_of(self._config), patience)
        watched = self._alive, self._waiting
        refit.send(self._weights, to, exchange, settings.bucket_bytes, self._leads, *watched)

        def judge() -> list[int]:
            self.refits.checksum = refit.together(to.checksums)
            for member, fault in zip(chosen, to.faults, strict=True):
                if fault:
                    self._fleet.bury(member, f"its refit failed: {fault}")
            whole = zip(chosen, to.faults, strict=True) if to.met else ()
            return self._numbers([member for member, fault in whole if not fault])

        return self._of_servers(judge)

    def _write(self, bucket_bytes: int) -> None:
        folder = self._folder / _WEIGHTS
        made = refit.write(self._weights, folder, bucket_bytes, self._leads, self._alive)

        def check() -> None:
            if made.fault:
                raise ConfigError(made.fault)

        of_first(check)
        self._written, self.refits.checksum = made, refit.together(made.checksums)

    def _load(self, member: Member) -> None:
        assert self._written is not None
        made, path = self._written, str(self._folder.resolve() / _WEIGHTS)
        member.client.call("mq3_from_folder", path=path, table=made.table, checksums=made.checksums)

    def _go_on(self, numbers: list[int]) -> list[int]:
        """Resume the servers that loaded the weights."""

        def go_on(member: Member) -> None:
            member.client.forget_prompts()
            member.client.set_version(self._version)
            member.client.resume()

        return self._numbers(self._each([self._fleet.members[n] for n in numbers], go_on))

    def _answers(self, numbers: list[int]) -> list[tuple[int, list[canary.Answer]]]:
        """Servers' answers to the check's prompts; from here on they have the current version."""
        answers: dict[int, list[canary.Answer]] = {}

        def ask(member: Member) -> None:
            answers[id(member)] = self._canary(member, canary.TOKENS)

        done = self._each([self._fleet.members[n] for n in numbers], ask)
        for member in done:
            member.version = self._version
        self.refits.restarts = self._fleet.restarted
        return [(n, answers[id(self._fleet.members[n])]) for n in self._numbers(done)]

    def _canary(self, member: Member, tokens: int) -> list[canary.Answer]:
        temperature = self._config.rollouts.temperature
        return canary.ask(member.client, self._prompts, temperature, tokens)

    def _compare(self, answers: list[tuple[int, list[canary.Answer]]]) -> None:
        """ConfigError where a server's log-probabilities differ too much from the model's."""
        temperature = self._config.rollouts.temperature
        off = canary.differences(self._model, self._prompts, [x for _, x in answers], temperature)
        limit = self._config.rollouts.vllm.difference

        def judge() -> float:
            for (number, _), difference in zip(answers, off, strict=True):
                if not difference <= limit:
                    raise ConfigError(
                        f"{self._fleet.members[number].name} does not compute as the model in "
                        f"training does: after the refit to version {self._version} a log-"
                        f"probability is off by {difference:.2g}, more than "
                        f"rollouts.vllm.difference = {limit:g}"
                    )
            return max(off)

        self.refits.difference = of_first(judge)

    def _each(self, members: Sequence[Member], action: Callable[[Member], object]) -> list[Member]:
        """Run an action on servers, all at once; returns those that did it and restarts the
        others."""
        faults = self._tried(members, action)
        for member, fault in zip(members, faults, strict=True):
            if fault:
                self._fleet.bury(member, fault)
        return [member for member, fault in zip(members, faults, strict=True) if not fault]

    def _tried(self, members: Sequence[Member], action: Callable[[Member], object]) -> list[str]:
        """Run an action on servers, all at once; why each one failed, "" where it did not."""
        with ThreadPoolExecutor(max(1, len(members))) as pool:
            return list(pool.map(lambda member: self._try(member, action), members))

    def _try(self, member: Member, action: Callable[[Member], object]) -> str:
        """Run an action on a server; why it failed, "" where it did not."""
        try:
            action(member)
        except (Died, RequestRefused) as error:
            return str(error) or type(error).__name__
        return ""

    def _close(self) -> None:
        if self._leads:
            self._fleet.close()
            shutil.rmtree(self._folder, ignore_errors=True)


def folder_of(config: Config) -> Path:
    """The folder from which servers load model and weights: in memory if they run on this
    machine."""
    settings = config.rollouts.vllm
    run = config.run_dir.resolve()
    name = f"mq3-{run.name}-{hashlib.sha256(str(run).encode()).hexdigest()[:12]}"
    if settings.folder:
        return Path(settings.folder) / name
    if settings.urls or not _SHARED_MEMORY.is_dir():
        return run / "vllm" / name
    return _SHARED_MEMORY / name


def host_of(config: Config) -> str:
    """The first rank's address, by which servers reach it."""
    hosts = [urlsplit(url).hostname or "" for url in config.rollouts.vllm.urls]
    if all(host in LOOPBACK for host in hosts):
        return LOOPBACK[0]
    return os.environ.get("MASTER_ADDR") or socket.gethostname()


def _tell(line: str) -> None:
    print(shown(line), file=sys.stderr, flush=True)
