"""Equal and nearly equal documents: found in buckets, joined to groups, all but the first dropped.

Three stages, each over any number of machines but the second of them, which is small:
1. SignDocuments     every task: the digest and signature (minhash.py) of each of its documents
2. FindPairs         a task for each band of the signatures and one for the digests, each further
                     cut by key where the corpus is large: sorts all keys, compares neighbours
3. GroupPairs        one task: connected components; per task of the first stage, what to drop

Candidates are compared by their whole signatures before they count as near-duplicates, so sharing
a bucket, which unlike documents do too, drops nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep.clean.files import load, save
from data_prep.clean.label import units_of
from data_prep.clean.settings import CleanSettings
from data_prep.minhash import Signature, Signing, band_key, resemblance, signature
from data_prep.units import Hashes

Numbers = npt.NDArray[np.int64]  # of documents, counted over all tasks
Pairs = npt.NDArray[np.int64]  # [P, 2], the earlier document first
REMOVED = np.dtype([("document", "<i8"), ("kept", "<i8"), ("is_equal", "?")])
_COMPARED = 1 << 16  # pairs at a time


class SignDocuments(PipelineStep):  # type: ignore[misc]
    """Notes what later stages find duplicates by, for each document that was not dropped.

    work/signatures/TASK.npy: uint16 [bands, D, rows], so that a band is one stretch of the file;
    work/digests/TASK.npy: uint64 [D, 2]; work/ids and id_ends: the documents' names end to end.
    """

    name, type = "Sign", "🫂 - DEDUP"

    def __init__(self, settings: CleanSettings) -> None:
        super().__init__()
        self.settings = settings

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        signatures, digests, ids = [], [], []
        signing = self.settings.signatures
        for document in data:
            if "_dropped" not in document.metadata:
                with self.track_time():
                    signatures.append(signature(units_of(document).hashes, signing))
                    ids.append(document.id.encode())
                    digests.append(hashlib.blake2b(document.text.encode(), digest_size=16).digest())
            yield document
        rows = np.array(signatures, np.uint16).reshape(-1, signing.bands, signing.rows)
        save(
            self.settings.file("work/signatures", rank, ".npy"),
            np.ascontiguousarray(rows.transpose(1, 0, 2)),
        )
        both = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
        save(self.settings.file("work/digests", rank, ".npy"), both)
        ends = np.cumsum([len(name) for name in ids], dtype=np.int64)
        save(self.settings.file("work/id_ends", rank, ".npy"), ends)
        save(self.settings.file("work/ids", rank, ".npy"), np.frombuffer(b"".join(ids), np.uint8))


class FindPairs(PipelineStep):  # type: ignore[misc]
    """Pairs of duplicates within one band (task // parts), of keys that are task modulo parts."""

    name, type = "Find pairs", "🫂 - DEDUP"

    def __init__(self, settings: CleanSettings, parts: int) -> None:
        super().__init__()
        self.settings, self.parts = settings, parts

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        band, part = divmod(rank, self.parts)
        is_equal = band == equal_band(self.settings.signatures)
        keys = np.concatenate([self._keys(band, task) for task in range(self.settings.tasks)])
        numbers = np.flatnonzero(keys % np.uint64(self.parts) == np.uint64(part))
        if not is_equal:
            numbers = numbers[keys[numbers] != _key_without_units(self.settings.signatures)]
        pairs = _neighbours(keys[numbers], numbers)
        with self.track_time():
            if not is_equal:
                pairs = pairs[self._resemblance(pairs) >= self.settings.similarity]
        save(self.settings.file("work/pairs", rank, ".npy"), pairs)
        self.stat_update("pairs", value=len(pairs))
        yield from ()

    def _keys(self, band: int, task: int) -> Hashes:
        if band == equal_band(self.settings.signatures):
            digests: Hashes = load(self.settings.file("work/digests", task, ".npy"))
            return np.bitwise_xor(digests[:, 0], digests[:, 1])
        rows = np.asarray(load(self.settings.file("work/signatures", task, ".npy"))[band])
        return band_key(rows)

    def _resemblance(self, pairs: Pairs) -> npt.NDArray[np.float64]:
        starts = document_starts(self.settings)
        return np.concatenate(
            [np.zeros(0)]
            + [
                resemblance(*(self._signatures(some[:, side], starts) for side in (0, 1)))
                for at in range(0, len(pairs), _COMPARED)
                for some in [pairs[at : at + _COMPARED]]
            ]
        )

    def _signatures(
        self, numbers: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]
    ) -> Signature:
        """uint16 [numbers, bands * rows] out of the tasks' files."""
        signing = self.settings.signatures
        found = np.empty((len(numbers), signing.bands, signing.rows), np.uint16)
        tasks = np.searchsorted(starts, numbers, "right") - 1
        for task in np.unique(tasks):
            here = tasks == task
            stored = load(self.settings.file("work/signatures", int(task), ".npy"))
            found[here] = stored[:, numbers[here] - starts[task]].transpose(1, 0, 2)
        return found.reshape(len(numbers), -1)


class GroupPairs(PipelineStep):  # type: ignore[misc]
    """Of each group of duplicates all but the first: work/removed/TASK.npy, rows of REMOVED."""

    name, type = "Group pairs", "🫂 - DEDUP"

    def __init__(self, settings: CleanSettings, pair_tasks: int) -> None:
        super().__init__()
        self.settings, self.pair_tasks = settings, pair_tasks

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        per_task = [
            load(self.settings.file("work/pairs", task, ".npy")) for task in range(self.pair_tasks)
        ]
        bands = self.settings.signatures.bands
        first_equal = len(per_task) * bands // (bands + 1)
        equal = np.unique(np.concatenate(per_task[first_equal:])[:, 1])
        members, firsts = groups(np.concatenate(per_task))
        later = members != firsts
        removed = np.empty(int(later.sum()), REMOVED)
        removed["document"], removed["kept"] = members[later], firsts[later]
        removed["is_equal"] = np.isin(removed["document"], equal)
        starts = document_starts(self.settings)
        cuts = np.searchsorted(removed["document"], starts)
        for task, (start, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
            save(self.settings.file("work/removed", task, ".npy"), removed[start:end])
        yield from ()


def equal_band(signing: Signing) -> int:
    """The number of the 'band' that is the digest."""
    return signing.bands


def _key_without_units(signing: Signing) -> np.uint64:
    """Of texts with nothing to compare."""
    (key,) = band_key(np.zeros((1, signing.rows), np.uint16))
    return np.uint64(key)


def document_starts(settings: CleanSettings) -> Numbers:
    """The number of each task's first document, and at last of all documents: [tasks + 1]."""
    files = (settings.file("work/digests", task, ".npy") for task in range(settings.tasks))
    sizes = [len(load(file)) for file in files]
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def document_id(settings: CleanSettings, starts: Numbers, number: int) -> str:
    """The id of a document by its number over all tasks."""
    task = int(np.searchsorted(starts, number, "right")) - 1
    ends = load(settings.file("work/id_ends", task, ".npy"))
    at = number - int(starts[task])
    begin = int(ends[at - 1]) if at else 0
    return bytes(load(settings.file("work/ids", task, ".npy"))[begin : ends[at]]).decode()


def groups(pairs: Pairs) -> tuple[Numbers, Numbers]:
    """Connected components: all members, ascending, and the smallest member of each one's group."""
    members, ends = np.unique(pairs, return_inverse=True)
    a, b = ends.reshape(-1, 2).T
    firsts = np.arange(len(members))
    while True:  # each round at least halves the distance to a group's first member
        lower = firsts.copy()
        np.minimum.at(lower, a, firsts[b])
        np.minimum.at(lower, b, firsts[a])
        np.minimum.at(lower, firsts[a], lower[a])
        np.minimum.at(lower, firsts[b], lower[b])
        lower = lower[lower]
        if np.array_equal(lower, firsts):
            return members, members[firsts]
        firsts = lower


def _neighbours(keys: Hashes, numbers: Numbers) -> Pairs:
    """Of documents with the same key each with the first of them, and with the one before it."""
    order = np.argsort(keys, kind="stable")
    ordered, numbers = keys[order], numbers[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
    first = begins[np.searchsorted(begins, same, "right") - 1]
    pairs = [np.stack([numbers[one], numbers[same]], axis=1) for one in (first, same - 1)]
    return np.unique(np.concatenate(pairs), axis=0).astype(np.int64).reshape(-1, 2)
