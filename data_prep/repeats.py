"""Measures how much of a text repeats: Gopher's shares of repeated runs of units.

    repeats = Repeats(split(text))
    repeats.top_share(2)     # letters in the most frequent run of two units
    repeats.share(5)         # letters in runs of five that stood there before

A run repeats only where the runs that it begins with do. So each length looks only at the places
that the one before it left, and costs little: sizes are asked for in ascending order.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.units import RUN_FACTOR, Hashes, Units, mix

Places = npt.NDArray[np.int64]
_FEW = 48  # places that a dictionary groups faster than arrays do, whose every step has a price


class RepeatGroups(NamedTuple):
    """Equal runs. members: indices of `places`, those of a group together, ascending in it;
    begins: of each group, where in `members`; counts: how many it has, two or more."""

    members: Places
    begins: Places
    counts: Places


class Repeats:
    """All shares are of the letters in units; 0 where the text has no more units than a run."""

    def __init__(self, units: Units) -> None:
        self._hashes = units.hashes
        self._letters = units.ends - units.starts
        self._total = int(self._letters.sum())
        self._size = 1
        self._places: Places = np.arange(len(units))  # of runs that may repeat, ascending
        self._runs: Hashes = units.hashes  # at these places, before they are mixed

    def top_share(self, size: int) -> float:
        """The share of the most frequent run of `size` units; of several the one of least hash."""
        groups = self._groups(size)
        if groups is None:
            return 0.0
        most = int(groups.counts.max())
        firsts = groups.members[groups.begins[groups.counts == most]]
        first = firsts[mix(self._runs[firsts]).argmin()] if len(firsts) > 1 else firsts[0]
        place = int(self._places[first])
        letters = int(self._letters[place : place + size].sum())
        self._leave(groups)
        return min(1.0, most * letters / self._total)

    def share(self, size: int) -> float:
        """The share in runs of `size` units that stood in the text before."""
        groups = self._groups(size)
        if groups is None:
            return 0.0
        is_later = np.ones(len(groups.members), np.bool_)
        is_later[groups.begins] = False
        later = self._places[groups.members[is_later]]
        self._leave(groups)
        return self._covered(later, size) / self._total

    def _covered(self, later: Places, size: int) -> int:
        """Letters in the runs of `size` units at these places, each counted once."""
        if len(later) <= _FEW:
            units = {at for place in later.tolist() for at in range(place, place + size)}
            return int(self._letters[list(units)].sum())
        opened = np.bincount(later, minlength=len(self._hashes) + 1)
        opened -= np.bincount(later + size, minlength=len(self._hashes) + 1)
        return int(self._letters[np.cumsum(opened)[:-1] > 0].sum())

    def _groups(self, size: int) -> RepeatGroups | None:
        """Of runs of `size` units that stand there twice or more; None where there are none."""
        if len(self._hashes) <= size or not len(self._places):
            return None
        self._grow(size)
        groups = (_equal_of_few if len(self._runs) <= _FEW else _equal)(self._runs)
        if groups is None:
            self._places = self._places[:0]
        return groups

    def _grow(self, size: int) -> None:
        """Runs of `size` units at the places that are left."""
        if self._size == 1:  # all of them are
            self._runs = self._hashes[:-1] * RUN_FACTOR + self._hashes[1:]
            self._places, self._size = self._places[:-1], 2
        for length in range(self._size, size):
            count = int(self._places.searchsorted(len(self._hashes) - length))
            self._places = self._places[:count]
            self._runs = self._runs[:count] * RUN_FACTOR + self._hashes[self._places + length]
        self._size = size

    def _leave(self, groups: RepeatGroups) -> None:
        """Keep only the places of these groups."""
        kept = np.sort(groups.members)
        self._places, self._runs = self._places[kept], self._runs[kept]


def _equal(runs: Hashes) -> RepeatGroups | None:
    """Groups of equal numbers; None where all are different.

    Numbers are sorted alone, five times as fast as with their indices: these replace the lowest
    bits, and the replaced bits are compared afterwards.
    """
    bits = np.uint64(max(1, len(runs).bit_length()))
    keys = np.sort((runs >> bits << bits) | np.arange(len(runs), dtype=np.uint64))
    high = keys >> bits
    same = high[1:] == high[:-1]
    if not same.any():
        return None
    grouped = np.concatenate((same, (False,)))
    grouped[1:] |= same
    members = (keys[grouped] & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    values = runs[members]
    new = np.concatenate(((True,), values[1:] != values[:-1]))
    begins = new.nonzero()[0]
    counts = np.concatenate((begins[1:], (len(members),))) - begins
    if int(counts.min()) < 2:  # of texts of a thousand units one in 10**11
        return _equal_of_few(runs)
    return RepeatGroups(members, begins, counts)


def _equal_of_few(runs: Hashes) -> RepeatGroups | None:
    """The same, for any number of them, one by one."""
    found: dict[int, list[int]] = {}
    for index, run in enumerate(runs.tolist()):
        found.setdefault(run, []).append(index)
    if len(found) == len(runs):
        return None
    several = [group for group in found.values() if len(group) > 1]
    counts = np.array([*map(len, several)])
    members = np.array([index for group in several for index in group])
    return RepeatGroups(members, counts.cumsum() - counts, counts)
