"""Divides the cells of an inventory by labels: each part has the stretches of shards of a source.

    for part in divided(inventory, ["source", "language", "domain"], marks):
        part.values, part.shards, part.packed

Cells lie in their shards in the order of their labels, so those that a source has of a shard are
often neighbours: they become one stretch. Memory is some 100 bytes for each cell of the inventory,
and that of the parts.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.inventory import Columns, Inventory
from data_prep.labels import LENGTHS
from data_prep.packed import Packed
from data_prep.stretches import INLINE, ROW, File, ShardFile, ShardStretches, Store

Int64 = npt.NDArray[np.int64]
_SUMS = ("tokens", "filler", *LENGTHS)


class Divided(NamedTuple):
    """The text with these values of labels. packed: None where texts simply follow each other."""

    values: tuple[str, ...]
    shards: Sequence[ShardFile]
    packed: Packed | None


class _Stretches(NamedTuple):
    """Stretches in the order of their places, [N] each. part: the number of the combination."""

    part_N: Int64
    file_N: Int64
    start_N: Int64
    tokens_N: Int64


def divided(inventory: Inventory, labels: Sequence[str], marks: Mapping[str, str]) -> list[Divided]:
    """The combinations of values of `labels` that have tokens, in the order of their first cells.

    marks: by path of a shard, the mark of its contents, or nothing.
    """
    parts, files = _Parts(), _Numbers()
    found = [_Stretches(*[np.zeros(0, np.int64)] * 4)]
    for columns in inventory.columns():
        part_N, file_N = parts.of(columns, labels), files.of(columns, ["path"])
        parts.add(columns, part_N)
        counts, has = columns.counts, columns.counts["tokens"] > 0
        cells = (part_N, file_N, counts["start"], counts["tokens"])
        found.append(_Stretches(*(column[has] for column in cells)))
    every = _Stretches(*(np.concatenate(column) for column in zip(*found, strict=True)))
    file_tokens = np.zeros(len(files.numbers), np.int64)
    np.add.at(file_tokens, every.file_N, every.tokens_N)
    rows = _joined(every)
    order = np.argsort(rows.part_N, kind="stable")
    stored = np.empty(len(order), ROW)
    for name, column in zip(ROW.names or (), rows[1:], strict=True):
        stored[name] = column[order]
    paths = [path for (path,) in files.numbers]
    known = [
        File(path, marks.get(path, ""), tokens)
        for path, tokens in zip(paths, file_tokens.tolist(), strict=True)
    ]
    return parts.divided(
        Store(stored, known), np.bincount(rows.part_N, minlength=len(parts.numbers))
    )


class _Numbers:
    """Numbers for combinations of words, in the order in which they are met."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, ...], int] = {}

    def of(self, columns: Columns, names: Sequence[str]) -> Int64:
        """The number of each cell's combination."""
        keys, key_N = columns.keys(names)
        own = [self.numbers.setdefault(key, len(self.numbers)) for key in keys]
        return np.array(own, np.int64)[key_N]


class _Parts(_Numbers):
    """Numbers for combinations, with the sums of their cells' counts."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[str, list[int]] = {name: [] for name in _SUMS}
        self._row_lengths: list[int] = []

    def add(self, columns: Columns, part_N: Int64) -> None:
        """Add the counts of these cells to those of their combinations."""
        size = len(self.numbers)
        self._row_lengths += [0] * (size - len(self._row_lengths))
        for name, sums in self._sums.items():
            sums += [0] * (size - len(sums))
            here = np.zeros(size, np.int64)
            np.add.at(here, part_N, columns.counts[name])
            for n in np.flatnonzero(here).tolist():
                sums[n] += int(here[n])
        parts, firsts = np.unique(part_N, return_index=True)
        lengths = columns.counts["row_length"][firsts]
        for n, length in zip(parts.tolist(), lengths.tolist(), strict=True):
            self._row_lengths[n] = self._row_lengths[n] or length

    def divided(self, store: Store, counts: Int64) -> list[Divided]:
        """counts: of stretches of each combination, which follow each other in the store."""
        firsts = np.cumsum(counts) - counts
        found = []
        for values, n in self.numbers.items():
            if not counts[n]:
                continue
            tokens = self._sums["tokens"][n]
            shards = ShardStretches(store, int(firsts[n]), int(counts[n]), tokens)
            few = len(store.rows) <= INLINE
            found.append(Divided(values, tuple(shards) if few else shards, self._packed(n)))
        return found

    def _packed(self, n: int) -> Packed | None:
        texts = {length: self._sums[length][n] for length in LENGTHS if self._sums[length][n]}
        row_length = self._row_lengths[n]
        return Packed(row_length, self._sums["filler"][n], texts) if row_length else None


def _joined(cells: _Stretches) -> _Stretches:
    """Neighbours of one part as one stretch."""
    part_N, file_N, start_N, tokens_N = cells
    goes_on_N = (np.diff(part_N) == 0) & (np.diff(file_N) == 0)
    goes_on_N &= start_N[1:] == start_N[:-1] + tokens_N[:-1]
    firsts = np.flatnonzero(np.concatenate([[True], ~goes_on_N])[: len(part_N)])
    sums = np.add.reduceat(tokens_N, firsts) if len(firsts) else tokens_N
    return _Stretches(part_N[firsts], file_N[firsts], start_N[firsts], sums)
