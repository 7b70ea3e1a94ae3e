"""megatron-core's pipeline schedules: their order, their time, and micro-batches in flight.

    order = rank_order(rank=0, pipeline=8, virtual=2, micro_batches=32)
    seconds = simulate(forward_CS, backward_CS, micro_batches=32)
    most = peak(order, bytes_of_chunk)

1F1B (PipeDream-Flush, arXiv 2006.09503) and its interleaved form (arXiv 2104.04473, section 2.2),
in the order of megatron.core.pipeline_parallel.schedules. With equal stages of f and b seconds the
step takes (m + (p - 1) / v) (f + b), as in the simulator, which also handles unequal stages.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

_FULL = 8  # micro-batches after which a short pipeline's rounds are equal


class PassOfChunk(NamedTuple):
    """A forward or backward pass of one micro-batch through one model chunk of a rank."""

    is_forward: bool
    chunk: int
    micro_batch: int


@lru_cache(maxsize=4096)
def rank_order(
    rank: int, pipeline: int, virtual: int, micro_batches: int
) -> tuple[PassOfChunk, ...]:
    """The passes of pipeline rank `rank` in one step, in order."""
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


class _Linked(NamedTuple):
    """A pass of the whole pipeline: the rank that computes it, its stage (backward ones count on
    from the forward ones), and the places of its input and of its result."""

    rank: int
    stage: int
    before: int
    result: int
    is_sent: bool  # its input, from another stage


@lru_cache(maxsize=128)
def _passes(pipeline: int, virtual: int, micro_batches: int) -> tuple[_Linked, ...]:
    """All passes of a step, each after those that it waits for; times do not change the order.

    Place m is the input of the first stage, (1 + s) · micro_batches + m the output of stage s, and
    after these come the gradients that backward passes give.
    """
    stages = pipeline * virtual
    orders = [rank_order(rank, pipeline, virtual, micro_batches) for rank in range(pipeline)]
    done = set(range(micro_batches))
    next_of, passes = [0] * pipeline, list[_Linked]()
    while len(passes) < 2 * stages * micro_batches:
        before_round = len(passes)
        for rank, order in enumerate(orders):
            while next_of[rank] < len(order):
                one = _placed(order[next_of[rank]], rank, pipeline, stages, micro_batches)
                if one.before not in done:
                    break
                done.add(one.result)
                passes.append(one)
                next_of[rank] += 1
        if len(passes) == before_round:
            raise ValueError(f"{micro_batches} micro-batches are no multiple of {pipeline}")
    return tuple(passes)


def _placed(
    work: PassOfChunk, rank: int, pipeline: int, stages: int, micro_batches: int
) -> _Linked:
    stage = work.chunk * pipeline + rank
    at = stage * micro_batches + work.micro_batch
    if work.is_forward:
        return _Linked(rank, stage, at, at + micro_batches, stage > 0)
    gradient = stages * micro_batches + micro_batches + at
    is_last = stage == stages - 1  # the gradient behind it is made of its own output
    before = at + micro_batches if is_last else gradient + micro_batches
    return _Linked(rank, stages + stage, before, gradient, not is_last)


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
    seconds = [*forward_seconds, *backward_seconds]
    done, clock = [0.0] * ((2 * stages + 1) * micro_batches), [0.0] * pipeline
    for rank, stage, before, result, is_sent in _passes(
        pipeline, stages // pipeline, micro_batches
    ):
        ready = done[before] + transfer_seconds if is_sent else done[before]
        clock[rank] = done[result] = max(clock[rank], ready) + seconds[stage]
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
        # In the end the slowest rank sets the pace, which a few rounds may not show yet.
        both = [f + b for f, b in zip(forward_seconds, backward_seconds, strict=True)]
        slowest = max(sum(both[rank::pipeline]) for rank in range(pipeline))
        pace = max(seconds - after(simulated - 1), pipeline * slowest)
        seconds += (rounds - simulated) * pace
    if is_interleaved and rest:
        seconds += rest / pipeline * (after(simulated + 1) - after(simulated))
    return seconds


def peak(order: Sequence[PassOfChunk], chunk_bytes: Sequence[float]) -> float:
    """The peak of bytes held when a forward pass of chunk c saves chunk_bytes[c]."""
    held = most = 0.0
    for work in order:
        held += chunk_bytes[work.chunk] if work.is_forward else -chunk_bytes[work.chunk]
        most = max(most, held)
    return most
