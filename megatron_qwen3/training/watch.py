"""Exchanges small values between ranks after every step, and finds slow ranks.

    roll = watch.roll_call(reason_to_stop, saver.state, engine.clock.seconds())
    if told := watch.slow_ranks(roll.busy_seconds): ...

One small gather per step carries everything on which ranks must agree. A rank's busy seconds are
those of its forward and backward passes, timed by megatron-core's schedules: they exclude waiting
for other stages and replicas, and include waiting for ranks that share rows or matrices. So a slow
rank stands out although all ranks take equally long for a step; in a group of tensor or context
ranks, all of them do.
"""

import socket
import statistics
from collections import deque
from typing import NamedTuple

import torch
import torch.distributed as dist


class Roll(NamedTuple):
    """The values of all ranks, in rank order. stop: the largest reason to stop; 0: none."""

    stop: int
    saves: list[int]
    busy_seconds: list[float]


class Watch:
    """One per rank.

    hosts: of the ranks, in order, split evenly over `stages` pipeline stages; slow_rank: how many
    times the median counts as slow, 0 turns this off; steps: over which ranks are judged.
    """

    def __init__(self, hosts: list[str], stages: int, slow_rank: float, steps: int = 20) -> None:
        self.hosts, self.stages, self.slow_rank = hosts, stages, slow_rank
        self._recent: deque[list[float]] = deque(maxlen=steps)

    def roll_call(self, stop: int, save: int, busy_seconds: float) -> Roll:
        """Every rank's values, on every rank."""
        device = torch.cuda.current_device()
        mine = torch.tensor([stop, save, busy_seconds], dtype=torch.float32, device=device)
        everyone = mine.new_empty(len(self.hosts) * 3)
        dist.all_gather_into_tensor(everyone, mine)
        stops, saves, seconds = everyone.view(-1, 3).t().tolist()
        return Roll(int(max(stops)), [int(save) for save in saves], seconds)

    def slow_ranks(self, busy_seconds: list[float]) -> str:
        """Record a step. Every `steps` steps, a line on slow ranks, else ""."""
        self._recent.append(busy_seconds)
        if len(self._recent) < (self._recent.maxlen or 0) or not self.slow_rank:
            return ""
        of_rank = [statistics.median(seconds) for seconds in zip(*self._recent, strict=True)]
        self._recent.clear()
        stage_size = len(of_rank) // self.stages  # stages have different work
        slow = []
        for rank, seconds in enumerate(of_rank):
            first = rank // stage_size * stage_size
            usual = statistics.median(of_rank[first : first + stage_size])
            if usual and seconds > self.slow_rank * usual:
                slow.append(f"rank {rank} on {self.hosts[rank]} {seconds / usual:.2f} times")
        if not slow:
            return ""
        spread = f"{min(of_rank):.3g} to {max(of_rank):.3g} s of forward and backward a step"
        return f"slow: {', '.join(slow)} the median of its stage ({spread})"


def hosts_of_ranks() -> list[str]:
    """The machine of every rank; all ranks call it."""
    hosts = [""] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    return hosts
