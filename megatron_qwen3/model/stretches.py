"""The texts that share rows, as one value from the data to the attention kernel.

    stretches = Stretches.of([[0, 5, 9], [0]], length=12)   # row 0: 5, 4 and 3 places; row 1: 12
    attention(q_SBND, k_SBGD, v_SBGD, stretches)

A stretch is a piece of a row whose places attend only to each other: a document, or the part of one
that is in the row. Kernels are called with its length, which the host must know, and read its
bounds on the device: so both are made with the batch, and no step waits for its device. Everything
grows with the number of documents, nothing with the square of a row's length.

Legend: B rows, S places of each, T = B·S places, row after row.
"""

import functools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Stretches:
    """B rows of `length` places, cut into stretches.

    bounds: the place in T at which each stretch begins, and T: stretch i is
    [bounds[i], bounds[i + 1]). None crosses the end of a row.
    cu_seqlens: `bounds` as int32 on the device of the batch.
    """

    length: int
    bounds: tuple[int, ...]
    cu_seqlens: Tensor

    @classmethod
    def of(cls, starts_of_rows: Sequence[Sequence[int]], length: int) -> Self:
        """From the places of each row, from 0, at which stretches begin.

        ValueError where a row does not begin with 0, does not ascend or goes beyond `length`.
        """
        for row, starts in enumerate(starts_of_rows):
            _check(row, starts, length)
        bounds = [row * length + s for row, starts in enumerate(starts_of_rows) for s in starts]
        return cls._of_bounds(length, (*bounds, len(starts_of_rows) * length))

    @classmethod
    def _of_bounds(cls, length: int, bounds: tuple[int, ...]) -> Self:
        return cls(length, bounds, torch.tensor(bounds, dtype=torch.int32))

    @property
    def rows(self) -> int:
        """B."""
        return self.bounds[-1] // self.length

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """Places of each stretch."""
        return tuple(last - first for first, last in pairwise(self.bounds))

    def starts_of_rows(self) -> list[tuple[int, ...]]:
        """The places of each row, from 0, at which a stretch begins."""
        rows: list[list[int]] = [[] for _ in range(self.rows)]
        for bound in self.bounds[:-1]:
            row, start = divmod(bound, self.length)
            rows[row].append(start)
        return [(*starts,) for starts in rows]

    def positions_BS(self) -> Tensor:
        """Each place's distance from the start of its stretch, int64, on `cu_seqlens`' device."""
        places = self.bounds[-1]
        starts, lengths = self.cu_seqlens[:-1], self.cu_seqlens.diff()
        start_T = starts.repeat_interleave(lengths, output_size=places)
        position_T = torch.arange(places, device=start_T.device) - start_T
        return position_T.view(self.rows, self.length)

    def of_rows(self, first: int, last: int) -> Self:
        """Rows [first, last) alone, on the same device."""
        begin, end = first * self.length, min(last, self.rows) * self.length
        pick = slice(bisect_left(self.bounds, begin), bisect_left(self.bounds, end) + 1)
        bounds = tuple(bound - begin for bound in self.bounds[pick])
        return replace(self, bounds=bounds, cu_seqlens=self.cu_seqlens[pick] - begin)

    def padded_to(self, rows: int) -> Self:
        """`rows` rows: copies of the first one are added at the end; on the host."""
        size = self.bounds[-1]
        first = self.bounds[1 : self.bounds.index(self.length) + 1]
        more = (size + n * self.length + b for n in range(rows - self.rows) for b in first)
        return self._of_bounds(self.length, (*self.bounds, *more))

    def to(self, device: torch.device) -> Self:
        """A copy on another device, without waiting."""
        return replace(self, cu_seqlens=self.cu_seqlens.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """A copy in pinned memory, which a GPU reads by itself."""
        return replace(self, cu_seqlens=self.cu_seqlens.pin_memory())


def _check(row: int, starts: Sequence[int], length: int) -> None:
    if not len(starts) or starts[0] != 0:
        found = starts[0] if len(starts) else "no start"
        raise ValueError(f"row {row}: its first stretch begins at {found}; valid: 0")
    for before, start in pairwise(starts):
        if start <= before:
            raise ValueError(f"row {row}: a stretch begins at {start} after one at {before}")
    if starts[-1] >= length:
        raise ValueError(f"row {row}: a stretch begins at {starts[-1]} of {length} places")
