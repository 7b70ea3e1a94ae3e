"""Packs samples into rows by best fit, a pure function of the settings and of the row's number.

    packing = Packing([DrawnSource(lengths_N, "chat:3f2a", quota=len(lengths_N))], 4096, seed=1234)
    packing.rows(first=step * 8, count=8)       # of each row its samples, as (source, sample)

Samples come in the order of a keyed permutation of their source, epoch after epoch; sources are
mixed by their quotas as pretraining mixes its corpora. Windows of this stream, of 65,536 samples at
most, are packed one by one: longest first, each into the row with the least room that it fits in.
A few tenths of a percent of the places stay empty. Then the rows of a window are shuffled. Memory
grows with the lengths of samples, not with their number, and a run resumes at any step: the windows
before it are packed again to count their rows. No torch here.

Legend: N samples of a source; M those of them that are trained, or held out.
"""

import functools
import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.best_fit import best_fit
from megatron_qwen3.pretrain.order import Interleave, Shuffle, epoch_key, mixed

Int64 = npt.NDArray[np.int64]
WINDOW_SAMPLES = 1 << 16
_MOST_DRAWN = 1 << 20  # draws of a source in a period whose shares match the weights


class PackedPlace(NamedTuple):
    """A sample in a row."""

    source: int
    sample: int


@dataclass(frozen=True, eq=False)
class DrawnSource:
    """The samples that a packing draws from one source.

    lengths_N: places that each sample takes in a row, at least 1; key: the source's identity, which
    its order depends on; quota: how many samples are drawn per period, or in all for a packing that
    ends.
    """

    lengths_N: Int64
    key: str
    quota: int


def by_weights(
    lengths: Sequence[Int64], keys: Sequence[str], weights: Sequence[float]
) -> list[DrawnSource]:
    """Sources that fill places of the rows in proportion to their weights."""
    rates = [weight / float(N.mean()) for weight, N in zip(weights, lengths, strict=True)]
    quotas = [max(1, round(rate / max(rates) * _MOST_DRAWN)) for rate in rates]
    return [DrawnSource(*each) for each in zip(lengths, keys, quotas, strict=True)]


def by_epochs(
    lengths: Sequence[Int64], keys: Sequence[str], epochs: Sequence[float]
) -> list[DrawnSource]:
    """Sources whose samples are drawn `epochs` times each; a fraction is rounded to samples."""
    quotas = [max(1, round(times * len(N))) for times, N in zip(epochs, lengths, strict=True)]
    return [DrawnSource(*each) for each in zip(lengths, keys, quotas, strict=True)]


class Packing:
    """Rows 0, 1, 2, … of `length` places.

    ends: whether the rows end with the quotas, or go on as these repeat.
    """

    def __init__(
        self, drawn: Sequence[DrawnSource], length: int, seed: int, ends: bool = False
    ) -> None:
        self.drawn, self.length, self.seed = tuple(drawn), length, seed
        self._interleave = Interleave([source.quota for source in drawn])
        self._samples = self._interleave.total if ends else None
        # Windows of equal size that end with an epoch where there is one source.
        one_pass = sum(len(source.lengths_N) for source in drawn)
        self._window_samples = -(-one_pass // -(-one_pass // WINDOW_SAMPLES))
        self._ends = [0]  # rows of the first 0, 1, 2, … windows, as far as packed
        self._lock = threading.Lock()
        self._window = functools.lru_cache(maxsize=2)(self._packed)

    def rows(self, first: int, count: int) -> list[list[PackedPlace]]:
        """Rows [first, first + count). IndexError where they end before."""
        with self._lock:  # another thread reads batches ahead
            return [self._row(number) for number in range(first, first + count)]

    @functools.cached_property
    def total_rows(self) -> int:
        """Number of rows of a packing that ends; packs all of it to count them."""
        assert self._samples is not None
        for window in range(len(self._ends) - 1, -(-self._samples // self._window_samples)):
            self._count(window)
        return self._ends[-1]

    def _row(self, number: int) -> list[PackedPlace]:
        while number >= self._ends[-1]:
            self._count(len(self._ends) - 1)
        window = bisect_right(self._ends, number) - 1
        source_W, sample_W, rows = self._window(window)
        order = Shuffle(len(rows), mixed(epoch_key(self.seed, "rows", 0), window))
        members = rows[order[number - self._ends[window]]]
        return [PackedPlace(int(source_W[n]), int(sample_W[n])) for n in members]

    def _count(self, window: int) -> None:
        self._ends.append(self._ends[window] + len(self._window(window)[2]))

    def _packed(self, window: int) -> tuple[Int64, Int64, list[list[int]]]:
        """The samples of a window: source and number of each, and which of them share a row."""
        first = window * self._window_samples
        last = first + self._window_samples
        if self._samples is not None:
            last = min(last, self._samples)
            if first >= last:
                raise IndexError(f"the packing has {self._ends[-1]:,} rows")
        bounds = zip(self._interleave.counts(first), self._interleave.counts(last), strict=True)
        samples = [self._drawn(n, low, high) for n, (low, high) in enumerate(bounds)]
        lengths = [s.lengths_N[picked] for s, picked in zip(self.drawn, samples, strict=True)]
        source_W = np.repeat(np.arange(len(samples)), [len(picked) for picked in samples])
        rows = best_fit(np.concatenate(lengths), self.length)
        return source_W, np.concatenate(samples), rows

    def _drawn(self, source: int, first: int, last: int) -> Int64:
        """The samples of a source that come at places [first, last) of its endless stream."""
        drawn, size = self.drawn[source], len(self.drawn[source].lengths_N)
        parts = [np.zeros(0, np.int64)]
        for epoch in range(first // size, -(-last // size)):
            low, high = max(first - epoch * size, 0), min(last - epoch * size, size)
            order = Shuffle(size, epoch_key(self.seed, drawn.key, epoch))
            parts.append(order.at(np.arange(low, high)))
        return np.concatenate(parts)


def trained_rows(
    packing: Packing, trained: Sequence[Int64], first: int, count: int
) -> list[list[PackedPlace]]:
    """Rows [first, first + count) of a packing. trained: of each source the numbers that its
    samples have in their set."""
    packed = packing.rows(first, count)
    return [[PackedPlace(k, int(trained[k][n])) for k, n in row] for row in packed]


def held_out_rows(
    held_out: Sequence[Int64], lengths: Sequence[Int64], length: int, most: int
) -> list[list[PackedPlace]]:
    """Rows of `length` places with each source's first held-out samples: `most` places of a source
    at most, but one sample. lengths: of all samples of each source."""
    places = []
    for source, (numbers_M, lengths_N) in enumerate(zip(held_out, lengths, strict=True)):
        count = max(1, int(np.searchsorted(lengths_N[numbers_M].cumsum(), most, side="right")))
        places += [PackedPlace(source, int(n)) for n in numbers_M[:count]]
    sizes = [lengths[place.source][place.sample] for place in places]
    rows = best_fit(np.array(sizes, np.int64), length)
    return [[places[n] for n in row] for row in rows]
