"""Finds exact copies by all 128 bits of their digests; the passes after it leave them aside.

FindEqual: tasks that share the digests by their first bits; work/equal/TASK: COPY rows, for each
task of this cleaning its own stretch.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep.clean.dedup.numbering import (
    Numbering,
    Numbers,
    count_documents,
    numbering_of,
)
from data_prep.clean.dedup.stretches import (
    DIGEST,
    KEYS,
    Rows,
    read_all,
    read_range,
    write,
)
from data_prep.clean.settings import CleanSettings

COPY = np.dtype([("document", "<i8"), ("kept", "<i8")])
_AT_ONCE = 1 << 17  # documents, or
_OF_EACH = 1 << 12  # of each place, so that reading is not all seeking


class FindEqual(PipelineStep):  # type: ignore[misc]
    """A task takes the digests of its range of keys; of equal documents all but the first go."""

    name, type = "Find equal", "🫂 - DEDUP"

    def __init__(self, settings: CleanSettings, parts: int) -> None:
        super().__init__()
        self.settings, self.parts = settings, parts

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        count_documents(self.settings)
        numbering = numbering_of(self.settings)
        found = [np.zeros(0, COPY)]
        for low, high in ranges(numbering, rank, self.parts):
            rows, numbers = gather(numbering, "digests", DIGEST, 0, 1, low, high)
            found.append(_copies(rows, numbers, numbering.first_own))
        copies = np.concatenate(found)
        copies = copies[np.argsort(copies["document"])]
        tasks = numbering.place_of(copies["document"]) - numbering.own
        counts = np.bincount(tasks, minlength=self.settings.tasks)
        write(self.settings.file("work/equal", rank, ""), counts, [copies])
        self.stat_update("copies", value=len(copies))
        yield from ()


def copies_of(settings: CleanSettings, equal_tasks: int, task: int) -> Rows:
    """The exact copies within a task of this cleaning, COPY, by their number."""
    paths = (settings.file("work/equal", part, "") for part in range(equal_tasks))
    copies = read_all(paths, COPY, task)
    return copies[np.argsort(copies["document"])]


def ranges(numbering: Numbering, part: int, parts: int) -> Iterator[tuple[int, int]]:
    """The keys of a part of so many, [low, high) after [low, high), few enough to sort at once."""
    at_once = max(_AT_ONCE, _OF_EACH * len(numbering.places))
    pieces = 1 << max(0, (numbering.total // parts // at_once).bit_length())
    bounds = [(part * pieces + k) * KEYS // (parts * pieces) for k in range(pieces + 1)]
    return zip(bounds, bounds[1:], strict=False)


def gather(
    numbering: Numbering,
    kind: str,
    dtype: np.dtype[Any],
    band: int,
    bands: int,
    low: int,
    high: int,
) -> tuple[Rows, Numbers]:
    """The rows of all places whose keys are in [low, high), and the numbers of their documents.

    Rows of equal keys are in the order of their documents once they are sorted stably.
    """
    pieces = [
        read_range(place.file(kind), dtype, band, bands, low, high) for place in numbering.places
    ]
    numbers = np.concatenate(
        [
            piece["number"] + start
            for piece, start in zip(pieces, numbering.starts[:-1], strict=True)
        ]
    )
    return np.concatenate(pieces), numbers.astype(np.int64)


def firsts(is_new: np.ndarray[Any, np.dtype[np.bool_]]) -> Numbers:
    """For each place in a row the place where its run begins; is_new: a run begins there."""
    return np.maximum.accumulate(np.where(is_new, np.arange(len(is_new)), 0))


def _copies(rows: Rows, numbers: Numbers, first_own: int) -> Rows:
    order = np.lexsort([np.ascontiguousarray(rows[name]) for name in ("rest", "key")])
    rows, numbers = rows[order], numbers[order]
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (rows["key"][1:] != rows["key"][:-1]) | (rows["rest"][1:] != rows["rest"][:-1])
    kept = numbers[firsts(is_new)]
    later = np.flatnonzero(~is_new & (numbers >= first_own))
    copies = np.empty(len(later), COPY)
    copies["document"], copies["kept"] = numbers[later], kept[later]
    return copies
