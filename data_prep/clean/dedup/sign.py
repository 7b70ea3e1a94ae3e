"""Notes a digest and a signature of each document, by which duplicates are found, and sorts them.

SignDocuments   a step of the first stage: digest, signature and name of each document
SortBands       a task for each of those: the keys of each band, sorted, without exact copies
"""

import hashlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep.clean.dedup.equal import copies_of
from data_prep.clean.dedup.numbering import numbering_of
from data_prep.clean.dedup.stretches import DIGEST, KEYED, Rows, write_sorted
from data_prep.clean.files import new_rows, pieces_of
from data_prep.clean.label import units_of
from data_prep.clean.settings import CleanSettings
from data_prep.minhash import band_key, signature
from data_prep.units import Hashes

_AT_ONCE = 1 << 14  # signatures
_KEY_BYTES = 1 << 29  # of keys that are made in one pass over the signatures


class SignDocuments(PipelineStep):  # type: ignore[misc]
    """Writes, at 20 bytes of memory for each document that was not dropped, work/KIND/TASK:

    signatures.npy: uint16 [D, bins]; digests: DIGEST, sorted; ids.npy, id_ends.npy: names end to
    end, and where each ends.
    """

    name, type = "Sign", "🫂 - DEDUP"

    def __init__(self, settings: CleanSettings) -> None:
        super().__init__()
        self.settings = settings

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        signing, file = self.settings.signatures, self.settings.file
        digests, end = bytearray(), 0
        with (
            new_rows(file("work/signatures", rank, ".npy"), np.uint16, signing.bins) as signatures,
            new_rows(file("work/ids", rank, ".npy"), np.uint8) as ids,
            new_rows(file("work/id_ends", rank, ".npy"), np.int64) as ends,
        ):
            for document in data:
                if "_dropped" not in document.metadata:
                    with self.track_time():
                        signatures.write(signature(units_of(document).hashes, signing))
                        text = document.text.encode()
                        digests += hashlib.blake2b(text, digest_size=16).digest()
                    name = document.id.encode()
                    end += len(name)
                    ids.write(name)
                    ends.write(array("q", [end]))
                yield document
        save_digests(self.settings, rank, digests)


def save_digests(settings: CleanSettings, task: int, digests: bytes | bytearray) -> None:
    """Write work/digests/TASK: 16 bytes of each document, end to end, as sorted DIGEST."""
    both = np.frombuffer(digests, "<u8").reshape(-1, 2)

    def rows(_: int) -> Rows:
        made = np.empty(len(both), DIGEST)
        made["key"], made["rest"], made["number"] = *both.T, np.arange(len(both))
        return made

    write_sorted(settings.file("work/digests", task, ".npy"), rows, 1, len(both))


class SortBands(PipelineStep):  # type: ignore[misc]
    """Writes work/bands/TASK: KEYED rows of each band, of documents with units that are no
    copies."""

    name, type = "Sort bands", "🫂 - DEDUP"

    def __init__(self, settings: CleanSettings, equal_tasks: int) -> None:
        super().__init__()
        self.settings, self.equal_tasks = settings, equal_tasks

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        bands = self.settings.signatures.bands
        numbering = numbering_of(self.settings)
        start, end = numbering.starts[numbering.own + rank :][:2]
        chosen = np.ones(int(end - start), bool)
        chosen[copies_of(self.settings, self.equal_tasks, rank)["document"] - start] = False
        path = self.settings.file("work/signatures", rank, ".npy")
        keys = _Keys(path, bands, chosen)
        numbers = np.flatnonzero(chosen).astype(np.uint32)

        def rows(band: int) -> Rows:
            made = np.empty(len(numbers), KEYED)
            made["key"], made["number"] = keys.of(band), numbers
            return made

        with self.track_time():
            write_sorted(self.settings.file("work/bands", rank, ".npy"), rows, bands, len(numbers))
        self.stat_update("documents", value=len(numbers))
        yield from ()


class _Keys:
    """Keys of one band after the other; several are made in a pass, as many as fit.

    chosen: documents whose keys are wanted; those that have no units are taken out of it.
    """

    def __init__(self, path: Path, bands: int, chosen: npt.NDArray[np.bool_]) -> None:
        self._path, self._bands, self._chosen = path, bands, chosen
        self._at_once = max(1, min(bands, _KEY_BYTES // (8 * max(1, len(chosen)))))
        self._make(0)

    def of(self, band: int) -> Hashes:
        """uint64 [documents]; bands have to be asked for in their order."""
        if band >= self._first + len(self._keys):
            self._make(band)
        keys: Hashes = self._keys[band - self._first]
        return keys

    def _make(self, first: int) -> None:
        past = min(first + self._at_once, self._bands)
        self._first = first
        self._keys = np.zeros((0, 0), np.uint64)  # those before go first
        keys = np.empty((past - first, len(self._chosen)), np.uint64)
        at = done = 0
        for rows in pieces_of(self._path, _AT_ONCE):
            chosen = self._chosen[at : at + len(rows)]
            chosen &= rows.any(axis=1)
            made = band_key(
                rows[chosen].reshape(-1, self._bands, rows.shape[1] // self._bands)[:, first:past]
            )
            keys[:, done : done + len(made)] = made.T
            at, done = at + len(rows), done + len(made)
        self._keys = keys[:, :done]
