"""The order of the training data, in closed form: what sample i is, from the number i alone.

Global sample i comes from the source that `Schedule` names, which also says how many earlier
samples came from there. That count, divided by the source's number of windows, gives the epoch and
a position in it, and `shuffled` turns the position into a window. `data.Mixture` joins the three.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

BLOCK_SAMPLES = 1 << 16  # weights are kept to 1/65,536 of the mixture
_FEISTEL_ROUNDS = 6
_MASK = (1 << 64) - 1


class Schedule:
    """The source of every global sample: a block of 65,536 samples, repeated.

    In the block source k has `quotas[k]` samples: its weight rounded to 1/65,536, at least one.
    After any number n of samples every source has had n · quota / 65,536 of them, to within one.
    """

    def __init__(self, weights: tuple[float, ...]) -> None:
        self.quotas = quotas(weights, BLOCK_SAMPLES)
        self._source_of_slot, self._earlier_in_block = _balanced_block(self.quotas)

    def locate(self, sample: int) -> tuple[int, int]:
        """(source, how many earlier samples came from the same source) of a global sample."""
        block, slot = divmod(sample, BLOCK_SAMPLES)
        source = int(self._source_of_slot[slot])
        return source, block * self.quotas[source] + int(self._earlier_in_block[slot])


def quotas(weights: tuple[float, ...], total: int) -> tuple[int, ...]:
    """`total` split in proportion to the weights by largest remainders, and at least 1 for each."""
    scale = total / math.fsum(weights)
    ideal = [weight * scale for weight in weights]
    parts = [max(1, math.floor(part)) for part in ideal]
    missing = total - sum(parts)
    by_remainder = sorted(range(len(parts)), key=lambda k: parts[k] - ideal[k])
    for k in by_remainder[: max(missing, 0)]:
        parts[k] += 1
    for _ in range(-missing):  # what the tiny ones got beyond their share comes from the largest
        parts[parts.index(max(parts))] -= 1
    return tuple(parts)


@lru_cache(maxsize=8)
def _balanced_block(quotas: tuple[int, ...]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The source of each slot of a block, and how many slots before it have the same source.

    R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980): sample j of a
    source with share q may come at place n (from 1) once n·q - j >= c and is due at
    n = (j + 1 - c) / q; of those that may come, the earliest due does. With c = 1 / (2K - 2) for
    K sources no count strays from n·q by more than 1 - c.
    """
    total = sum(quotas)
    inverse_c = max(2 * len(quotas) - 2, 1)
    releases: list[tuple[int, float, int, int]] = []
    for k, quota in enumerate(quotas):
        j = np.arange(quota, dtype=np.int64)
        first_slot = -(-(j * inverse_c + 1) * total // (inverse_c * quota)) - 1
        due = ((j + 1) * inverse_c - 1) * total / (inverse_c * quota)
        releases += zip(first_slot.tolist(), due.tolist(), [k] * quota, j.tolist(), strict=True)
    releases.sort(reverse=True)
    waiting: list[tuple[float, int, int]] = []
    order = []
    for slot in range(total):
        while releases and releases[-1][0] <= slot:
            heapq.heappush(waiting, releases.pop()[1:])
        order.append(heapq.heappop(waiting)[1:])
    source_of_slot, earlier = np.array(order, dtype=np.int32).T
    return np.ascontiguousarray(source_of_slot), np.ascontiguousarray(earlier)


def shuffled(position: int, size: int, key: int) -> int:
    """A permutation of [0, size) chosen by a 64-bit key, at one position, without a table.

    A Feistel network on pairs (a, b), adding modulo the sides of a near-square grid that just holds
    `size` values; values off the end are mapped again until they land inside (cycle walking: Black
    and Rogaway, Ciphers with arbitrary finite domains, 2002).
    """
    rows = math.isqrt(max(size - 1, 0)) + 1
    columns = -(-size // rows)
    value = position
    while True:
        a, b = divmod(value, columns)
        for round in range(0, 2 * _FEISTEL_ROUNDS, 2):
            a = (a + _mix(key + round, b)) % rows
            b = (b + _mix(key + round + 1, a)) % columns
        value = a * columns + b
        if value < size:
            return value


def _mix(key: int, value: int) -> int:
    """64 mixed bits of a key and a value: splitmix64's finaliser (Steele et al. 2014), twice."""
    mixed = key & _MASK
    for word in (0x9E3779B97F4A7C15, value):
        mixed = (mixed + word) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return mixed


def epoch_key(seed: int, source_name: str, epoch: int) -> int:
    """The key of `shuffled` for one pass through one source."""
    text = f"{seed}\0{epoch}\0{source_name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
