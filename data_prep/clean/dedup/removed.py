"""Lists the removed documents of a task, and the document that is kept instead of each.

    for document, is_equal, kept in removed_of(settings, task, equal_tasks): ...

document: counted within the task, ascending; kept: the id of the one that stays.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data_prep.clean.dedup.equal import COPY, copies_of
from data_prep.clean.dedup.numbering import Numbering, Numbers, TaskFiles, numbering_of
from data_prep.clean.dedup.stretches import Rows
from data_prep.clean.files import load, new_rows
from data_prep.clean.settings import CleanSettings

_AT_ONCE = 1 << 17  # documents


class RemovedDuplicate(NamedTuple):
    """A removed document of the task, whether it is a copy, and the id of the one that stays."""

    document: int
    is_equal: bool
    kept: str


def removed_of(settings: CleanSettings, task: int, equal_tasks: int) -> Iterator[RemovedDuplicate]:
    """All of a task, in order. Raises OSError where the stages before have not ended."""
    numbering = numbering_of(settings)
    copies = copies_of(settings, equal_tasks, task)
    near = _near(settings, task)
    rows = np.concatenate([copies, near])
    order = np.argsort(rows["document"], kind="stable")
    start = numbering.starts[numbering.own + task]
    for at in range(0, len(order), _AT_ONCE):
        some = order[at : at + _AT_ONCE]
        kept = names_of(numbering, _lasting(settings, numbering, rows["kept"][some]))
        documents = (rows["document"][some] - start).tolist()
        equal = (some < len(copies)).tolist()
        yield from map(RemovedDuplicate, documents, equal, kept)


def names_of(numbering: Numbering, numbers: Numbers) -> list[str]:
    """The ids of documents; for one that an earlier cleaning removed, the id that it kept."""
    names = [""] * len(numbers)
    for place, which in numbering.by_place(numbers):
        own = numbers[which] - numbering.starts[place]
        found = _read_names(numbering.places[place], "ids", "id_ends", own)
        if place < numbering.own:
            for at, name in _instead(numbering.places[place], own):
                found[at] = name
        for at, name in zip(which.tolist(), found, strict=True):
            names[at] = name
    return names


def save_instead(settings: CleanSettings, task: int, removed: list[RemovedDuplicate]) -> None:
    """Write index/instead/TASK.npy, instead_ids, instead_id_ends: the kept ones, for later
    cleanings."""
    place = TaskFiles(settings.folder("index"), task)
    names = [one.kept.encode() for one in removed]
    with new_rows(place.file("instead"), np.uint32) as numbers:
        numbers.write(np.array([one.document for one in removed], np.uint32))
    with new_rows(place.file("instead_ids"), np.uint8) as ids:
        ids.write(b"".join(names))
    with new_rows(place.file("instead_id_ends"), np.int64) as ends:
        ends.write(np.cumsum([len(name) for name in names], dtype=np.int64))


def _near(settings: CleanSettings, task: int) -> Rows:
    """Documents that are like another one: none where only equal ones are removed."""
    if settings.similarity > 1:
        return np.zeros(0, COPY)
    return load(settings.file("work/removed", task, ".npy"))


def _lasting(settings: CleanSettings, numbering: Numbering, kept: Numbers) -> Numbers:
    """Of documents that others equal, those that stay: they may be like a still earlier one."""
    kept = kept.copy()
    for place, which in numbering.by_place(kept):
        if place >= numbering.own:
            near = _near(settings, place - numbering.own)
            at = np.searchsorted(near["document"], kept[which])
            found = np.flatnonzero(at < len(near))
            found = found[near["document"][at[found]] == kept[which][found]]
            kept[which[found]] = near["kept"][at[found]]
    return kept


def _instead(place: TaskFiles, own: Numbers) -> Iterator[tuple[int, str]]:
    """(position, id of the kept one) of those that the earlier cleaning removed."""
    numbers = load(place.file("instead"))
    at = np.searchsorted(numbers, own)
    found = np.flatnonzero(at < len(numbers))
    found = found[numbers[at[found]] == own[found]]
    names = _read_names(place, "instead_ids", "instead_id_ends", at[found])
    yield from zip(found.tolist(), names, strict=True)


def _read_names(place: TaskFiles, ids: str, ends: str, own: Numbers) -> list[str]:
    """Names by their positions; read in their order in the file."""
    if not len(own):
        return []
    all_ids, all_ends = load(place.file(ids)), load(place.file(ends))
    stops = all_ends[own]
    starts = np.where(own > 0, all_ends[np.maximum(own - 1, 0)], 0)
    names = [""] * len(own)
    for at in np.argsort(own).tolist():
        names[at] = all_ids[starts[at] : stops[at]].tobytes().decode()
    return names
