"""megatron-core's flat buffers: the place of each weight, and the part of each data rank.

    buffer = Buffer.of([("linear_qkv", 4096), …], ranks=8, bucket_elements=40_000_000)
    buffer.elements, buffer.owned(rank=3)

DistributedDataParallel lays the weights of one model chunk and their gradients end to end, last
weight first, as backward meets them. With the distributed optimizer each weight starts at a
multiple of 64 elements, a bucket ends at a multiple of lcm(ranks, 128), and rank r owns the r-th of
`ranks` equal parts of every bucket (megatron.core.distributed.param_and_grad_buffer, 0.16).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

_WEIGHT_ALIGNMENT = 64
_BUCKET_ALIGNMENT = 128


@dataclass(frozen=True)
class BufferedWeight:
    """One weight of a rank; `alone` gets a bucket of its own, as a shared embedding does."""

    name: str
    elements: int
    alone: bool = False


@dataclass(frozen=True)
class Buffer:
    """spans: [start, end) of each weight; buckets: [start, end) of each bucket, with padding."""

    ranks: int
    spans: tuple[tuple[int, int], ...]
    buckets: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, weights: Sequence[BufferedWeight], ranks: int, bucket_elements: float) -> "Buffer":
        """The padded buffer of a distributed optimizer over `ranks` data-parallel ranks.

        A bucket is closed once it has `bucket_elements`; infinity makes one bucket of all.
        """
        spans: list[tuple[int, int]] = []
        buckets: list[tuple[int, int]] = []
        unit = math.lcm(ranks, _BUCKET_ALIGNMENT)
        start = bucket_start = 0
        for weight in reversed(weights):
            start = _ceil(start, _WEIGHT_ALIGNMENT)
            if weight.alone and start > bucket_start:
                buckets.append((bucket_start, _ceil(start, unit)))
                start = bucket_start = buckets[-1][1]
            end = start + weight.elements
            spans.append((start, end))
            start = end
            if weight.alone or end - bucket_start >= bucket_elements:
                buckets.append((bucket_start, _ceil(end, unit)))
                start = bucket_start = buckets[-1][1]
        if start > bucket_start:
            buckets.append((bucket_start, _ceil(start, unit)))
        return cls(ranks, tuple(spans), tuple(buckets))

    @property
    def elements(self) -> int:
        """Elements of the whole buffer, padding included."""
        return self.buckets[-1][1] if self.buckets else 0

    def owned(self, rank: int) -> int:
        """Elements of weights, padding excluded, whose optimizer state data rank `rank` keeps."""
        return self.elements // self.ranks - self._padding_of_rank.get(rank, 0)

    @property
    def most_owned(self) -> int:
        """The largest of `owned` over all ranks."""
        paddings = self._padding_of_rank
        least = min(paddings.values()) if len(paddings) == self.ranks else 0
        return self.elements // self.ranks - least

    @cached_property
    def _padding_of_rank(self) -> dict[int, int]:
        """Padding that falls into the part of a rank, for the ranks that have some."""
        padding: dict[int, int] = {}
        spans = iter(self.spans)
        span = next(spans, None)
        for first, last in self.buckets:
            share, end = (last - first) // self.ranks, first
            while span and span[0] < last:
                _spread(padding, end - first, span[0] - first, share)
                end = span[1]
                span = next(spans, None)
            _spread(padding, end - first, last - first, share)
        return padding


def _spread(padding: dict[int, int], start: int, end: int, share: int) -> None:
    """Add the gap [start, end) of a bucket to the ranks in whose parts it lies."""
    while start < end:
        rank = start // share
        stop = min(end, (rank + 1) * share)
        padding[rank] = padding.get(rank, 0) + stop - start
        start = stop


def _ceil(number: int, unit: int) -> int:
    return -(-number // unit) * unit
