"""The order of the training data, in closed form: no table, whatever the number of samples.

`Interleave` gives the source of sample i, and the number of earlier samples from there; `Shuffle`
is a permutation of any size, one position at a time. `stream.py` turns the count of a source into
its tokens, and `data.Mixture` joins the two.
"""

import hashlib
import heapq
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

_FEISTEL_ROUNDS = 6
_MASK = (1 << 64) - 1


class Interleave:
    """The source of every sample, for whole numbers of samples `quotas` that repeat for ever.

    A binary tree over the sources: at a node of weight W a child of weight w gets, of the node's
    first n samples, n·w/W rounded to the nearest; it sees them as its own samples 0, 1, 2, … After
    sum(quotas) samples every source has had exactly its quota, which may be 0. Before, no count
    strays further from its share than `bound`, which is below 2 for any quotas: the tree is
    Huffman's, where a child that is no leaf has at most two thirds of its node, so that errors
    shrink on their way down.
    """

    def __init__(self, quotas: Sequence[int]) -> None:
        self.quotas = tuple(quotas)
        self.total = sum(quotas)
        assert min(quotas) >= 0
        self._weights = list(quotas)
        self._children: list[tuple[int, int]] = []  # of node len(quotas), len(quotas) + 1, …
        heap = [(weight, node) for node, weight in enumerate(quotas) if weight]
        heapq.heapify(heap)
        while len(heap) > 1:
            light, heavy = heapq.heappop(heap), heapq.heappop(heap)
            self._children.append((light[1], heavy[1]))
            self._weights.append(light[0] + heavy[0])
            heapq.heappush(heap, (self._weights[-1], len(self._weights) - 1))
        self._root = heap[0][1] if heap else 0

    def locate(self, sample: int) -> tuple[int, int]:
        """(source, number of earlier samples from the same source) of a sample."""
        leaves = len(self.quotas)
        period, n = divmod(sample, self.total)
        node = self._root
        while node >= leaves:
            light, heavy = self._children[node - leaves]
            whole, part = self._weights[node], self._weights[light]
            before = (2 * n * part + whole) // (2 * whole)
            if (2 * (n + 1) * part + whole) // (2 * whole) > before:
                node, n = light, before
            else:
                node, n = heavy, n - before
        return node, period * self.quotas[node] + n

    def counts(self, samples: int) -> list[int]:
        """Number of samples of each source among the first `samples`."""
        leaves = len(self.quotas)
        period, n = divmod(samples, self.total)
        count = [0] * len(self._weights)
        count[self._root] = n
        for node in range(len(self._weights) - 1, leaves - 1, -1):
            light, heavy = self._children[node - leaves]
            whole, part = self._weights[node], self._weights[light]
            count[light] = (2 * count[node] * part + whole) // (2 * whole)
            count[heavy] = count[node] - count[light]
        return [period * quota + n for quota, n in zip(self.quotas, count[:leaves], strict=True)]

    @property
    def bound(self) -> float:
        """The greatest distance of any source's count from its share, in samples."""
        leaves = len(self.quotas)
        error = [0.0] * len(self._weights)
        for node in range(len(self._weights) - 1, leaves - 1, -1):
            for child in self._children[node - leaves]:
                error[child] = 0.5 + error[node] * self._weights[child] / self._weights[node]
        return max(error[:leaves])


def apportion(shares: Sequence[int], total: int) -> list[int]:
    """`total` as whole numbers in proportion to the shares, by largest remainders; exact."""
    whole = sum(shares)
    parts = [share * total // whole for share in shares]
    by_remainder = sorted(range(len(parts)), key=lambda k: -(shares[k] * total % whole))
    for k in by_remainder[: total - sum(parts)]:
        parts[k] += 1
    return parts


class Shuffle:
    """A permutation of [0, size) chosen by a 64-bit key, at any position, without a table.

    A Feistel network on pairs (a, b), adding modulo the sides of a near-square grid that just holds
    `size` values; values off the end are mapped again until they land inside (cycle walking: Black
    and Rogaway, Ciphers with arbitrary finite domains, 2002).
    """

    def __init__(self, size: int, key: int) -> None:
        self.size, self.key = size, key
        self._rows = math.isqrt(max(size - 1, 0)) + 1
        self._columns = -(-size // self._rows)

    def __getitem__(self, position: int) -> int:
        value = position
        while True:
            a, b = divmod(value, self._columns)
            for round in range(0, 2 * _FEISTEL_ROUNDS, 2):
                a = (a + mixed(self.key + round, b)) % self._rows
                b = (b + mixed(self.key + round + 1, a)) % self._columns
            value = a * self._columns + b
            if value < self.size:
                return value

    def at(self, positions_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The values at many positions at once: `self[position]` of each."""
        rows, columns = np.uint64(self._rows), np.uint64(self._columns)
        value_N = positions_N.astype(np.uint64)
        walking = np.arange(len(value_N))
        while len(walking):
            a, b = np.divmod(value_N[walking], columns)
            for round in range(0, 2 * _FEISTEL_ROUNDS, 2):
                a = (a + _mixed_of_many(self.key + round, b) % rows) % rows
                b = (b + _mixed_of_many(self.key + round + 1, a) % columns) % columns
            value_N[walking] = a * columns + b
            walking = walking[value_N[walking] >= self.size]
        return value_N.astype(np.int64)

    def position(self, value: int) -> int:
        """The position of `value`: the inverse."""
        while True:
            a, b = divmod(value, self._columns)
            for round in range(2 * _FEISTEL_ROUNDS - 2, -1, -2):
                b = (b - mixed(self.key + round + 1, a)) % self._columns
                a = (a - mixed(self.key + round, b)) % self._rows
            value = a * self._columns + b
            if value < self.size:
                return value

    def __iter__(self) -> Iterator[int]:
        return (self[position] for position in range(self.size))


def mixed(key: int, value: int) -> int:
    """64 mixed bits of a key and a value: splitmix64's finaliser (Steele et al. 2014), twice."""
    state = key & _MASK
    for word in (0x9E3779B97F4A7C15, value):
        state = (state + word) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def _mixed_of_many(key: int, value_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """`mixed` of one key and many values; products of uint64 wrap as `_MASK` has them."""
    state_N = np.full_like(value_N, key & _MASK)
    for word in (np.uint64(0x9E3779B97F4A7C15), value_N):
        state_N = state_N + word
        state_N = (state_N ^ (state_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state_N = (state_N ^ (state_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state_N ^= state_N >> np.uint64(31)
    return state_N


def epoch_key(seed: int, source_name: str, epoch: int) -> int:
    """The key of all shuffling in one pass through one source."""
    text = f"{seed}\0{epoch}\0{source_name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
