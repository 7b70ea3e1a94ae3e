"""Finds nearly equal documents: pairs that share a key of a band, compared by whole signatures.

FindPairs       tasks that share each band's keys by range: pairs of documents with the same key
LendSignatures  a task for each place: the signature of the earlier one, for the other's task
ComparePairs    a task for each of this cleaning: the pairs that are as similar as asked for

Like documents share a key often, unlike ones at times; so pairs with one are compared. Nothing is
looked for here and there in files of others: keys are read once, in stretches, signatures of pairs
once by their own task, and lent ones once by the borrower.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep.clean.dedup.equal import firsts, gather, ranges
from data_prep.clean.dedup.groups import Forest
from data_prep.clean.dedup.numbering import Numbering, Numbers, numbering_of
from data_prep.clean.dedup.stretches import KEYED, Counts, Rows, count, read, write
from data_prep.clean.files import load, save
from data_prep.clean.settings import CleanSettings
from data_prep.minhash import similarity
from data_prep.units import Hashes

PAIR = np.dtype([("a", "<i8"), ("b", "<i8")])  # numbers of documents, a before b
_LENT_AT_ONCE = 1 << 14
_PAIRS_AT_ONCE = 1 << 23
_CELLS = 1 << 12  # of all documents, by which pairs are counted before they are held


class FindPairs(PipelineStep):  # type: ignore[misc]
    """Pairs of band `task // parts`, of a range of its keys: work/pairs/TASK, PAIR by a's place."""

    name, type = "Find pairs", "🫂 - DEDUP"

    def __init__(self, settings: CleanSettings, parts: int) -> None:
        super().__init__()
        self.settings, self.parts = settings, parts

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        band, part = divmod(rank, self.parts)
        numbering = numbering_of(self.settings)
        bands = self.settings.signatures.bands
        found = []
        for low, high in ranges(numbering, part, self.parts):
            with self.track_time():
                rows, numbers = gather(numbering, "bands", KEYED, band, bands, low, high)
                found.append(_neighbours(rows["key"], numbers, numbering.first_own))
        counts, pieces = _by_place(found, numbering)
        write(self.settings.file("work/pairs", rank, ""), counts, pieces)
        self.stat_update("pairs", value=int(counts.sum()))
        yield from ()


class LendSignatures(PipelineStep):  # type: ignore[misc]
    """work/lent/PLACE: pairs whose a is there, each once, with a's signature; by b's task."""

    name, type = "Lend signatures", "🫂 - DEDUP"

    def __init__(self, settings: CleanSettings, pair_tasks: int) -> None:
        super().__init__()
        self.settings, self.pair_tasks = settings, pair_tasks

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        numbering = numbering_of(self.settings)
        paths = [self.settings.file("work/pairs", task, "") for task in range(self.pair_tasks)]
        signatures = load(numbering.places[rank].file("signatures"))
        counts = np.zeros(self.settings.tasks, np.int64)

        def pieces() -> Iterator[Rows]:
            for low, high in _ranges_of_later(paths, rank, numbering):
                pairs, tasks = _distinct(paths, rank, low, high, numbering)
                counts[:] += np.bincount(tasks, minlength=len(counts))
                for at in range(0, len(pairs), _LENT_AT_ONCE):
                    some = pairs[at : at + _LENT_AT_ONCE]
                    rows = np.empty(len(some), _lent(self.settings))
                    rows["a"], rows["b"] = some["a"], some["b"]
                    rows["signature"] = signatures[some["a"] - numbering.starts[rank]]
                    yield rows

        write(self.settings.file("work/lent", rank, ""), counts, pieces())
        self.stat_update("signatures", value=int(counts.sum()))
        yield from ()


class ComparePairs(PipelineStep):  # type: ignore[misc]
    """work/alike/TASK.npy: int64 [L, 2], links (earlier, later) that join all that are similar to
    a document of this task, directly or through others: fewer than there are documents in them."""

    name, type = "Compare pairs", "🫂 - DEDUP"

    def __init__(self, settings: CleanSettings) -> None:
        super().__init__()
        self.settings = settings

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with self.track_time():
            links = _joined(similar_pairs(self.settings, rank))
        save(self.settings.file("work/alike", rank, ".npy"), links)
        yield from ()


def similar_pairs(settings: CleanSettings, task: int) -> Iterator[Numbers]:
    """int64 [P, 2]: of the pairs whose later document is a task's those that are similar."""
    numbering = numbering_of(settings)
    own = load(settings.file("work/signatures", task, ".npy"))
    start = numbering.starts[numbering.own + task]
    for place in range(len(numbering.places)):
        for rows in read(settings.file("work/lent", place, ""), _lent(settings), task):
            rows = rows[np.argsort(rows["b"], kind="stable")]
            like = similarity(rows["signature"], own[rows["b"] - start])
            rows = rows[like >= settings.similarity]
            yield np.stack([rows["a"], rows["b"]], axis=1)


def _ranges_of_later(
    paths: Sequence[Path], reader: int, numbering: Numbering
) -> list[tuple[int, int]]:
    """Documents [low, high) after [low, high), of so many pairs as later ones as are held at once.

    However many documents are alike, and so have pairs with the same first of them.
    """
    first, total = numbering.first_own, numbering.total
    size = sum(count(path, PAIR, reader) for path in paths)
    if size <= _PAIRS_AT_ONCE:
        return [(first, total)]
    edges = np.linspace(first, total, _CELLS + 1).astype(np.int64)
    of_cells = np.zeros(_CELLS, np.int64)
    for path in paths:
        for rows in read(path, PAIR, reader):
            of_cells += np.histogram(rows["b"], edges)[0]
    of_range = np.cumsum(of_cells) // _PAIRS_AT_ONCE
    bounds = [first, *edges[1:-1][np.diff(of_range) > 0].tolist(), total]
    return list(itertools.pairwise(bounds))


def _distinct(
    paths: Sequence[Path], reader: int, low: int, high: int, numbering: Numbering
) -> tuple[Rows, Numbers]:
    """Each pair once whose later document is in [low, high), and the task of that, in its order."""
    found = [np.zeros(0, PAIR)]
    for path in paths:
        for rows in read(path, PAIR, reader):
            found.append(rows[(rows["b"] >= low) & (rows["b"] < high)])
    pairs = np.concatenate(found)
    del found
    tasks = numbering.place_of(pairs["b"]) - numbering.own
    order = np.lexsort((pairs["b"], pairs["a"], tasks))
    pairs, tasks = pairs[order], tasks[order]
    is_new = np.ones(len(pairs), bool)
    is_new[1:] = pairs[1:] != pairs[:-1]
    return pairs[is_new], tasks[is_new]


def _joined(pieces: Iterable[Numbers]) -> Numbers:
    """The links that join what these pairs join; memory is that of these links, and a little."""
    held, size = [np.zeros((0, 2), np.int64)], 0
    for pairs in pieces:
        held.append(pairs)
        size += len(pairs)
        if size > max(_PAIRS_AT_ONCE, len(held[0])):
            held, size = [Forest.of(np.concatenate(held)).links()], 0
    return Forest.of(np.concatenate(held)).links()


def _neighbours(keys: Hashes, numbers: Numbers, first_own: int) -> Rows:
    """Of documents with the same key each with the first of them, and with the one before it."""
    keys = np.ascontiguousarray(keys)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    is_new = np.ones(len(keys), bool)
    is_new[1:] = keys[1:] != keys[:-1]
    del keys
    numbers = numbers[order]
    at = np.flatnonzero(~is_new & (numbers >= first_own))  # earlier ones were compared already
    first = firsts(is_new)[at]
    both = first != at - 1
    pairs = np.empty(len(at) + int(both.sum()), PAIR)
    pairs["a"] = numbers[np.concatenate([first, at[both] - 1])]
    pairs["b"] = numbers[np.concatenate([at, at[both]])]
    return pairs


def _by_place(found: list[Rows], numbering: Numbering) -> tuple[Counts, Iterator[Rows]]:
    """How many pairs there are for each place, and these, place after place."""
    cuts = []
    for piece in found:
        piece[:] = piece[np.argsort(piece["a"], kind="stable")]
        cuts.append(np.searchsorted(piece["a"], numbering.starts))
    counts: Counts = np.sum(
        np.array([np.diff(cut) for cut in cuts], np.int64), axis=0, dtype=np.int64
    )
    pieces = (
        piece[cut[place] : cut[place + 1]]
        for place in range(len(numbering.places))
        for piece, cut in zip(found, cuts, strict=True)
    )
    return counts, pieces


def _lent(settings: CleanSettings) -> np.dtype[Any]:
    return np.dtype([*PAIR.descr, ("signature", "<u2", (settings.signatures.bins,))])
