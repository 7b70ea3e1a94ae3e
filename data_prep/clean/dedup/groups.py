"""Drops all but the first document of each group of similar ones; links join documents to groups.

GroupPairs      one task: work/removed/TASK.npy for each task, COPY rows by document

It holds 8 bytes of each document that has a link while these are found, then 12 to 16; links are
read twice, a file at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep.clean.dedup.equal import COPY
from data_prep.clean.dedup.numbering import Numbers, numbering_of
from data_prep.clean.dedup.stretches import Rows
from data_prep.clean.files import load, save
from data_prep.clean.settings import CleanSettings

_AT_ONCE = 1 << 18  # links


class GroupPairs(PipelineStep):  # type: ignore[misc]
    """Joins the links of all tasks."""

    name, type = "Group pairs", "🫂 - DEDUP"

    def __init__(self, settings: CleanSettings) -> None:
        super().__init__()
        self.settings = settings

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        def links() -> Iterator[Numbers]:
            for task in range(self.settings.tasks):
                yield load(self.settings.file("work/alike", task, ".npy"))

        with self.track_time():
            forest = Forest(links)
        numbering = numbering_of(self.settings)
        for task in range(self.settings.tasks):
            low, high = numbering.starts[numbering.own + task :][:2]
            removed = np.concatenate([np.zeros(0, COPY), *forest.later(int(low), int(high))])
            save(self.settings.file("work/removed", task, ".npy"), removed)
            self.stat_update("removed", value=len(removed))
        yield from ()


class Forest:
    """Groups of numbers that links join, each led by its smallest.

    links: called twice, gives arrays [L, 2]. Union-find whose parents are smaller than their
    children, so that there are no circles, on the ranks of the numbers among all.
    """

    def __init__(self, links: Callable[[], Iterable[Numbers]]) -> None:
        self._members = _distinct(links)
        small = len(self._members) < 1 << 31
        kind = np.int32 if small else np.int64
        self._parent: Rows = np.arange(len(self._members), dtype=kind)
        for some in links():
            for at in range(0, len(some), _AT_ONCE):
                a, b = np.searchsorted(self._members, some[at : at + _AT_ONCE]).T
                self._join(a, b)
        for at in range(0, len(self._members), _AT_ONCE):  # those before have their first by now
            self._find(np.arange(at, min(at + _AT_ONCE, len(self._members))))

    @classmethod
    def of(cls, links: Numbers) -> Forest:
        """Of links [L, 2] that are there already."""
        return cls(lambda: [links])

    def later(self, low: int, high: int) -> Iterator[Rows]:
        """COPY rows of the members in [low, high) that do not lead their group, ascending."""
        start, end = np.searchsorted(self._members, (low, high))
        for at in range(start, end, _AT_ONCE):
            own = np.arange(at, min(at + _AT_ONCE, end))
            first = self._parent[own]
            later = first != own
            rows = np.empty(int(later.sum()), COPY)
            rows["document"] = self._members[own[later]]
            rows["kept"] = self._members[first[later]]
            yield rows

    def links(self) -> Numbers:
        """int64 [L, 2]: (first of its group, member) of all others, by member."""
        rows = np.concatenate([np.zeros(0, COPY), *self.later(0, np.iinfo(np.int64).max)])
        both: Numbers = np.stack([rows["kept"], rows["document"]], axis=1)
        return both

    def _find(self, nodes: Numbers) -> Numbers:
        """The first of each one's group as far as it is known.

        All look up at once, and each look makes the path of every node, and of those above it, at
        least a third shorter: a chain of n takes some log n looks (path halving; Tarjan and van
        Leeuwen 1984).
        """
        left = nodes
        while len(left):
            first = self._parent[left]
            top = above(self._parent, first)
            self._parent[first] = top
            self._parent[left] = top
            left = left[top != first]
        first = self._parent[nodes]
        return first

    def _join(self, a: Numbers, b: Numbers) -> None:
        while len(a):
            a, b = self._find(np.concatenate([a, b])).reshape(2, -1)
            differ = a != b
            a, b = a[differ], b[differ]
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))


def above(parent: Rows, nodes: Numbers) -> Numbers:
    """Two steps above each node, or the first of its group."""
    return parent[parent[nodes]]


def _distinct(links: Callable[[], Iterable[Numbers]]) -> Numbers:
    """All numbers in links, ascending. Of those of one array each is held once; then all are."""
    most = sum(some.size for some in links())
    held, count = np.empty(most, np.int64), 0  # memory that is not written to is not there
    for some in links():
        ends = np.unique(some)
        held[count : count + len(ends)] = ends
        count += len(ends)
    held = held[:count]
    held.sort()
    kept = 0
    for at in range(0, count, _AT_ONCE):
        some = held[at : at + _AT_ONCE]
        new = np.ones(len(some), bool)
        new[1:] = some[1:] != some[:-1]
        new[:1] = not kept or held[kept - 1] != some[0]
        chosen = some[new]
        held[kept : kept + len(chosen)] = chosen
        kept += len(chosen)
    return held[:kept].copy() if kept < count // 2 else held[:kept]
