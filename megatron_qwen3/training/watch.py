"""What ranks tell each other after every step, and which of them are slow.

    roll = watch.roll_call(reason_to_stop, saver.state, engine.clock.seconds())
    if told := watch.slow_ranks(roll.busy_seconds): ...

One small gather per step answers all questions on which ranks must agree. A rank's busy seconds are
those of its forward and backward passes, which megatron-core's schedules time: waiting for other
stages and replicas is not in them, waiting within a tensor-parallel group is. So a slow rank stands
out although all ranks take equally long for a step; in a tensor-parallel group all do.
"""

import socket
import statistics
import time
from collections import deque
from typing import Any, NamedTuple

from megatron_qwen3.parallel import cpu  # isort: skip  (before megatron-core)
import torch
import torch.distributed as dist


class Roll(NamedTuple):
    """The answers of all ranks, in rank order. stop: the largest reason to stop; 0 is none."""

    stop: int
    saves: list[int]
    busy_seconds: list[float]


class Watch:
    """Every rank has one.

    hosts: of the ranks, in order, which are split evenly over `stages` pipeline stages;
    slow_rank: how many times the median is slow, 0 looks at none; steps: that it is judged by.
    """

    def __init__(self, hosts: list[str], stages: int, slow_rank: float, steps: int = 20) -> None:
        self.hosts, self.stages, self.slow_rank = hosts, stages, slow_rank
        self._recent: deque[list[float]] = deque(maxlen=steps)

    def roll_call(self, stop: int, save: int, busy_seconds: float) -> Roll:
        """Every rank's answers, on every rank."""
        device = torch.cuda.current_device()
        mine = torch.tensor([stop, save, busy_seconds], dtype=torch.float32, device=device)
        everyone = mine.new_empty(len(self.hosts) * 3)
        dist.all_gather_into_tensor(everyone, mine)
        stops, saves, seconds = everyone.view(-1, 3).t().tolist()
        return Roll(int(max(stops)), [int(save) for save in saves], seconds)

    def slow_ranks(self, busy_seconds: list[float]) -> str:
        """Take note of a step. Every `steps` steps: the ranks that were slow, or ""."""
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


def gpu_memory() -> dict[str, float]:
    """Bytes of this rank's GPU, {} on a CPU.

    memory_peak_bytes: the most that tensors have held at once since the start;
    memory_reserved_bytes: what torch has taken from the GPU for them, which others cannot have.
    """
    if cpu.REDIRECTED:
        return {}
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved()
    return {"memory_peak_bytes": float(peak), "memory_reserved_bytes": float(reserved)}


class ComputeClock:
    """Stands for megatron-core's timers, and adds up the forward and backward passes alone.

    On a GPU the times are those of events, read once per step when the device is done anyway.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[Any, Any]] = []
        self._begin: Any = None
        self._busy = False

    def __call__(self, name: str, log_level: int | None = None) -> "ComputeClock":
        self._busy = name in ("forward-compute", "backward-compute")
        return self

    def start(self, barrier: bool = False) -> None:
        if self._busy:
            self._begin = _now()

    def stop(self, barrier: bool = False) -> None:
        if self._busy:
            self._spans.append((self._begin, _now()))

    def restart(self) -> None:
        """Forget what was."""
        self._spans = []

    def seconds(self) -> float:
        """What was added up since the restart."""
        spans = self._spans
        if cpu.REDIRECTED:
            return sum(end - begin for begin, end in spans)
        if spans:
            spans[-1][1].synchronize()  # the last pass alone, not the update that follows it
        return sum(begin.elapsed_time(end) for begin, end in spans) / 1000


def _now() -> Any:
    if cpu.REDIRECTED:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
