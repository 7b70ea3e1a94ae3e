"""The keys that each query reads: the geometry of attention, in integers.

    reads = Reads.of(rows=2, length=96, stretches=stretches)       # documents that share rows
    reads = Reads.of(2, 96, stretches, pieces=((24, 48), (72, 96)))  # queries of a part of each row
    reads = Reads.of(2, 96, stretches, chunk=12)                   # Dual Chunk Attention: dca.py

A query reads its document up to itself. For neighbouring queries these keys are a causal square
over their own places and full rectangles over earlier places, and the softmax over all keys is
merged from theirs (attention.py): so no mask is needed, and no kernel computes a pair of places
that do not attend to each other. Successive rectangles of equal size are one call of a kernel.
Everything grows with the number of documents, chunks and pieces.

Legend: B rows, S queries of a row on this rank, T keys of a row.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, Self

from torch import Tensor

from megatron_qwen3.model.stretches import Stretches

Interval = tuple[int, int]  # [first, last)


class Rectangle(NamedTuple):
    """Queries of a row with keys that all of them read, or in a causal square, each up to itself.

    queries: an interval of this rank's S places. keys: an interval of the row's T places.
    distance: chunks from the queries' to the keys': 0, 1, or 2 for all that are farther.
    place: of the first query in its chunk; without chunks 0.
    """

    queries: Interval
    keys: Interval
    is_causal: bool
    distance: int = 0
    place: int = 0


class KernelCall(NamedTuple):
    """Rectangles of one size, as one batch of a kernel: `steps` that follow each other in `row`,
    or the same one of `rows` rows from it. The first begins at `query` and `key`.
    """

    row: int
    rows: int
    steps: int
    query: int
    queries: int
    key: int
    keys: int
    is_causal: bool
    distance: int
    place: int

    def of_queries(self, x_SBnD: Tensor) -> Tensor:
        """The queries' entries of a tensor, as a batch [b, n, queries, D] in the same memory."""
        return self._batch(x_SBnD, self.query, self.queries)

    def of_keys(self, x_TBnD: Tensor) -> Tensor:
        """The keys' entries of a tensor, as a batch [b, n, keys, D] in the same memory."""
        return self._batch(x_TBnD, self.key, self.keys)

    def _batch(self, x: Tensor, first: int, length: int) -> Tensor:
        rows_bnSD = x[first : first + self.steps * length, self.row : self.row + self.rows]
        rows_bnSD = rows_bnSD.permute(1, 2, 0, 3)
        if self.steps == 1:
            return rows_bnSD
        return rows_bnSD[0].unflatten(1, (self.steps, length)).transpose(0, 1)


@dataclass(frozen=True, eq=False)
class Reads:
    """The reads of B rows' queries, made once per batch.

    queries: S. keys: T. calls: a row's squares come before its other rectangles; every query is in
    one square. stretches: for whole rows of squares only, as one kernel call needs them.
    """

    rows: int
    queries: int
    keys: int
    calls: tuple[KernelCall, ...]
    stretches: Stretches | None = None

    @classmethod
    def of(
        cls,
        rows: int,
        length: int,
        stretches: Stretches | None = None,
        pieces: Sequence[Interval] | None = None,
        chunk: int | None = None,
    ) -> Self:
        """For rows of `length` places, each one text unless `stretches` cut it.

        pieces: where this rank's queries stand in every row, in their order; None: all places.
        chunk: places of a chunk. ValueError where the stretches are of other rows.
        """
        if stretches and (stretches.rows, stretches.length) != (rows, length):
            raise ValueError(
                f"stretches of {stretches.rows} rows of {stretches.length} places for {rows} rows "
                f"of {length} places"
            )
        is_whole = pieces is None
        pieces = joined(((0, length),) if pieces is None else pieces)
        starts_of_rows = stretches.starts_of_rows() if stretches else [(0,)] * rows
        calls = _calls([(*starts, length) for starts in starts_of_rows], pieces, chunk)
        squares_alone = stretches if is_whole and chunk is None else None
        queries = sum(last - first for first, last in pieces)
        return cls(rows, queries, length, tuple(calls), squares_alone)

    @functools.cached_property
    def merges(self) -> bool:
        """Whether some queries read more than their square."""
        return not all(call.is_causal for call in self.calls)


def joined(pieces: Sequence[Interval]) -> list[Interval]:
    """The pieces with neighbours joined and empty ones dropped."""
    found: list[Interval] = []
    for first, last in pieces:
        if found and found[-1][1] == first:
            found[-1] = found[-1][0], last
        elif first < last:
            found.append((first, last))
    return found


def rectangles(
    bounds: Sequence[int], pieces: Sequence[Interval], chunk: int | None = None
) -> Iterator[Rectangle]:
    """Of one row whose documents lie between `bounds`, its length the last of these.

    A segment [a, b) is of one piece, one document that begins at d, and one chunk that begins at c:
    its queries read themselves and, all of it, [c, a) and the places of [d, c) by distance.
    """
    query = 0
    for first, last in pieces:
        for d, a, b, c in _segments(bounds, first, last, chunk):
            queries, place = (query, query + b - a), a - c if chunk else 0
            before = max(d, c - chunk) if chunk else c
            yield Rectangle(queries, (a, b), True, 0, place)
            for distance, keys in enumerate(((c, a), (before, c), (d, before))):
                if keys[0] < keys[1]:
                    yield Rectangle(queries, keys, False, distance, place)
            query += b - a


def _segments(
    bounds: Sequence[int], first: int, last: int, chunk: int | None
) -> Iterator[tuple[int, int, int, int]]:
    """d, a, b and c of `rectangles`, for the places from `first` to before `last`."""
    for d, end in zip(bounds, bounds[1:], strict=False):
        a, end = max(first, d), min(last, end)
        while a < end:
            c = d + (a - d) // chunk * chunk if chunk else d
            b = min(end, c + chunk) if chunk else end
            yield d, a, b, c
            a = b


def _calls(
    bounds_of_rows: Sequence[Sequence[int]], pieces: Sequence[Interval], chunk: int | None
) -> Iterator[KernelCall]:
    """Calls of all rows; equal neighbouring rows share calls that are no batch already."""
    row = 0
    for bounds, alike in groupby(bounds_of_rows):
        rows, calls = sum(1 for _ in alike), _calls_of_row(rectangles(bounds, pieces, chunk))
        for call in sorted(calls, key=lambda call: not call.is_causal):
            if call.steps == 1:
                yield call._replace(row=row, rows=rows)
            else:
                yield from (call._replace(row=row + n) for n in range(rows))
        row += rows


def _calls_of_row(found: Iterator[Rectangle]) -> list[KernelCall]:
    """Each rectangle, with those of its kind and size that follow it directly, as one call."""
    calls: list[KernelCall] = []
    latest: dict[tuple[bool, int], int] = {}  # the place in `calls` of each kind's last one
    for (a, b), (c, d), is_causal, distance, place in found:
        kind = is_causal, distance
        call = KernelCall(0, 1, 1, a, b - a, c, d - c, is_causal, distance, place)
        if kind in latest and _follows(call, calls[latest[kind]]):
            before = calls[latest[kind]]
            calls[latest[kind]] = before._replace(steps=before.steps + 1)
        else:
            latest[kind] = len(calls)
            calls.append(call)
    return calls


def _follows(call: KernelCall, before: KernelCall) -> bool:
    n = before.steps
    return call == before._replace(
        steps=1, query=before.query + n * before.queries, key=before.key + n * before.keys
    )
