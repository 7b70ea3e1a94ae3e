"""megatron-core's pipeline schedules: their order, their time, and what is in flight.

    order = rank_order(rank=0, pipeline=8, virtual=2, micro_batches=32)
    seconds = simulate(forward_CS, backward_CS, micro_batches=32)
    most = peak(order, bytes_of_chunk)

1F1B (PipeDream-Flush, arXiv 2006.09503) and its interleaved form (arXiv 2104.04473, section 2.2),
in the order of megatron.core.pipeline_parallel.schedules. With equal stages of f and b seconds the
step takes (m + (p - 1) / v) (f + b), which the simulator gives, too; it also knows unequal stages.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

_FULL = 8  # micro-batches after which a short pipeline's rounds are alike


class PassOfChunk(NamedTuple):
    """A forward or backward pass of one micro-batch through one model chunk of a rank."""

    is_forward: bool
    chunk: int
    micro_batch: int


@lru_cache(maxsize=4096)
def rank_order(
    rank: int, pipeline: int, virtual: int, micro_batches: int
) -> tuple[PassOfChunk, ...]:
    """What pipeline rank `rank` does in one step, in order."""
    forwards = [PassOfChunk(True, c, m) for c, m in _interleaved(pipeline, virtual, micro_batches)]
    backwards = [
        PassOfChunk(False, virtual - 1 - work.chunk, work.micro_batch) for work in forwards
    ]
    warm_up = min(len(forwards), _warm_up(rank, pipeline, virtual))
    order = forwards[:warm_up]
    for forward, backward in zip(forwards[warm_up:], backwards, strict=False):
        order += [forward, backward]
    return tuple(order + backwards[len(forwards) - warm_up :])


def _warm_up(rank: int, pipeline: int, virtual: int) -> int:
    """Forward passes before the first backward pass."""
    if virtual == 1:
        return pipeline - rank - 1
    return 2 * (pipeline - rank - 1) + (virtual - 1) * pipeline


def _interleaved(pipeline: int, virtual: int, micro_batches: int) -> list[tuple[int, int]]:
    """(chunk, micro-batch): groups of `pipeline` micro-batches pass one chunk after the other."""
    group = pipeline if virtual > 1 else 1
    return [
        (chunk, micro)
        for first in range(0, micro_batches, group)
        for chunk in range(virtual)
        for micro in range(first, min(first + group, micro_batches))
    ]


def simulate(
    forward_seconds: Sequence[float],
    backward_seconds: Sequence[float],
    pipeline: int,
    micro_batches: int,
    transfer_seconds: float = 0.0,
) -> float:
    """Seconds of all forward and backward passes of a step.

    `forward_seconds` and `backward_seconds` are those of each stage in model order; stage s is
    chunk s // pipeline of rank s % pipeline. A stage's output reaches the next after
    `transfer_seconds`, during which both ranks may compute.
    """
    stages = len(forward_seconds)
    orders = [rank_order(r, pipeline, stages // pipeline, micro_batches) for r in range(pipeline)]
    # When each (stage, micro-batch) is done; what lies before the first stage is there from the
    # start, and the gradient behind the last stage is its own output.
    forward_done = [[0.0] * micro_batches] + [[-1.0] * micro_batches for _ in range(stages)]
    backward_done = [[-1.0] * micro_batches for _ in range(stages)] + [forward_done[-1]]
    clock, place = [0.0] * pipeline, [0] * pipeline
    running = {rank for rank in range(pipeline) if orders[rank]}
    while running:
        before_round = sum(place)
        for rank in sorted(running):
            order, now, i = orders[rank], clock[rank], place[rank]
            for is_forward, chunk, micro in order[i:]:
                stage = chunk * pipeline + rank
                before = forward_done[stage] if is_forward else backward_done[stage + 1]
                ready = before[micro]
                if ready < 0.0:
                    break
                if stage > 0 if is_forward else stage < stages - 1:
                    ready += transfer_seconds
                now = max(now, ready)
                if is_forward:
                    now += forward_seconds[stage]
                    forward_done[stage + 1][micro] = now
                else:
                    now += backward_seconds[stage]
                    backward_done[stage][micro] = now
                i += 1
            clock[rank], place[rank] = now, i
        running = {rank for rank in running if place[rank] < len(orders[rank])}
        if sum(place) == before_round:
            raise ValueError(f"{micro_batches} micro-batches are no multiple of {pipeline}")
    return max(clock)


def step_seconds(
    forward_seconds: Sequence[float],
    backward_seconds: Sequence[float],
    pipeline: int,
    micro_batches: int,
    transfer_seconds: float = 0.0,
) -> float:
    """`simulate`, in time that does not grow with the number of micro-batches.

    Once the pipeline is full, every further round of `pipeline` micro-batches costs the same:
    within 3 % of `simulate` where stages differ by a fifth, and equal to it where they do not. A
    part of a round, which the interleaved schedule does not take, costs its share.
    """
    rounds, rest = divmod(micro_batches, pipeline)
    is_interleaved = len(forward_seconds) > pipeline
    extra = 0 if is_interleaved else rest

    def after(rounds: int) -> float:
        few = rounds * pipeline + extra
        return simulate(forward_seconds, backward_seconds, pipeline, few, transfer_seconds)

    simulated = min(rounds, max(3, 1 + _FULL // pipeline))
    seconds = after(simulated)
    if rounds > simulated:
        # The slowest rank sets the pace in the end, which a few rounds need not show yet.
        both = [f + b for f, b in zip(forward_seconds, backward_seconds, strict=True)]
        slowest = max(sum(both[rank::pipeline]) for rank in range(pipeline))
        pace = max(seconds - after(simulated - 1), pipeline * slowest)
        seconds += (rounds - simulated) * pace
    if is_interleaved and rest:
        seconds += rest / pipeline * (after(simulated + 1) - after(simulated))
    return seconds


def peak(order: Sequence[PassOfChunk], chunk_bytes: Sequence[float]) -> float:
    """Most bytes that are held at once when a forward pass of chunk c keeps chunk_bytes[c]."""
    held = most = 0.0
    for work in order:
        held += chunk_bytes[work.chunk] if work.is_forward else -chunk_bytes[work.chunk]
        most = max(most, held)
    return most
