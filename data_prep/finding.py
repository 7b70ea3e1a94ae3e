"""Documents of shards found by what their provenance says: id, url, any other field, file and line.

    query = DocumentQuery(frozenset({"https://a.b/c"}), field="url")
    for found in find("data/tokens", query, workers=8): found.path, found.document, found.origin

There is no index: all provenance is read, at a GB a second of a process where one value is looked
for, at 60 MB where they are many. It is about a tenth of the tokens' bytes.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from data_prep.indexed import IndexedReader
from data_prep.inventory import Inventory
from data_prep.noted import Scalar, parted
from data_prep.pool import Pool
from data_prep.shards import DOCS_MAGIC, NO_FILE, ORIGIN, Origin
from megatron_qwen3.bar import Bar, in_megabytes
from megatron_qwen3.config import ConfigError

MANY = 16  # values, from which on each document is looked at
_BLOCK_BYTES = 1 << 24
_SERIAL_BYTES = 1 << 28  # of provenance that one process reads sooner than others begin
ID = "id"


class DocumentQuery(NamedTuple):
    """values: any of which a document is found by. field: where it stands, `id` or a name; ""
    anywhere. is_part: whether the value may be a part of a text. line: of the input file of that
    name, in place of values."""

    values: frozenset[str] = frozenset()
    field: str = ""
    is_part: bool = False
    line: tuple[str, int] | None = None

    def matches(self, name: str, fields: dict[str, Scalar]) -> bool:
        """Whether a document of this id and these fields is one of those."""
        texts = ([name] if self.field in ("", ID) and name else []) + [
            as_text(value) for key, value in fields.items() if self.field in ("", key)
        ]
        if self.is_part:
            return any(value in text for value in self.values for text in texts)
        return not self.values.isdisjoint(texts)


class FoundDocument(NamedTuple):
    """A document, or piece of packed text, of the shard at `path`, relative to the inventory."""

    path: str
    document: int
    origin: Origin


@dataclass(frozen=True)
class ShardSearch:
    """What each process of a search knows."""

    folder: Path
    inputs: tuple[str, ...]
    query: DocumentQuery


def find(inventory: Inventory, query: DocumentQuery, workers: int) -> Iterator[FoundDocument]:
    """All documents that match, in the order of the shards. ConfigError, OSError: a shard is none.

    Says on stderr how far it is, and how long it will take.
    """
    _check(inventory, query)
    paths = paths_of(inventory)
    sizes = [os.path.getsize(f"{inventory.folder / path}.docs") for path in paths]
    workers = workers if sum(sizes) > _SERIAL_BYTES else 1
    search = ShardSearch(inventory.folder, inventory.inputs, query)
    found: dict[str, list[FoundDocument]] = {}
    with Bar("", sum(sizes), in_megabytes) as bar:
        bar.stage("searching", sum(sizes), sum(sizes))
        with Pool(max(1, min(workers, len(paths))), search, __name__) as pool:
            for path, here in pool.run(_in_shard, [(path,) for path in paths], bar.advance):
                if here:
                    found[path] = here
    for path in paths:
        yield from found.get(path, ())


def paths_of(inventory: Inventory) -> list[str]:
    """Where the inventory's shards lie, relative to its folder, each once."""
    found: dict[str, None] = {}
    for columns in inventory.columns():
        values, _ = columns.words["path"]
        found |= dict.fromkeys(values)
    return list(found)


def as_text(value: Scalar) -> str:
    """A value as one writes it on a command line."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _check(inventory: Inventory, query: DocumentQuery) -> None:
    if query.line and query.line[0] not in inventory.inputs:
        some = ", ".join(inventory.inputs[:3]) + (", …" if len(inventory.inputs) > 3 else "")
        raise ConfigError(
            f"{query.line[0]} is none of the {len(inventory.inputs):,} inputs of "
            f"{inventory.folder}: {some}"
        )
    if "" in query.values or not (query.values or query.line):
        raise ConfigError("nothing is looked for: name a value that is not empty")


def _in_shard(
    search: ShardSearch, path: str, tick: Callable[[int], None]
) -> tuple[str, list[FoundDocument]]:
    prefix = search.folder / path
    count = IndexedReader(prefix).num_documents
    size = os.path.getsize(f"{prefix}.docs")
    texts_at = len(DOCS_MAGIC) + ORIGIN.itemsize * count
    if size < texts_at:
        raise ConfigError(f"{prefix}.docs is cut short: {size:,} bytes for {count:,} documents")
    with open(f"{prefix}.docs", "rb") as file:
        if not count:
            return path, []
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        rows = np.frombuffer(data, ORIGIN, count, len(DOCS_MAGIC))
        notes = _Notes(data, rows, texts_at)
        found = [
            FoundDocument(
                path, n, Origin(search.inputs[int(rows[n]["file"])], int(rows[n]["line"]), *note)
            )
            for n, note in _matching(notes, rows, search)
        ]
    tick(size)
    return path, found


def _matching(
    notes: _Notes, rows: npt.NDArray[Any], search: ShardSearch
) -> Iterator[tuple[int, tuple[str, dict[str, Scalar]]]]:
    query = search.query
    candidates: Iterator[int] | Sequence[int]
    if query.line:
        number = search.inputs.index(query.line[0])
        here = (rows["file"] == number) & (rows["line"] == query.line[1])
        return ((n, notes[n]) for n in np.flatnonzero(here).tolist())
    if len(query.values) >= MANY:
        candidates = range(len(rows))
    else:
        candidates = notes.holding([n for value in query.values for n in _needles(value, query)])
    found = ((n, notes[n]) for n in candidates if rows[n]["file"] != NO_FILE)
    return ((n, note) for n, note in found if query.matches(*note))


class _Notes:
    """The ids and fields of a shard's documents, by number."""

    def __init__(self, data: mmap.mmap, rows: npt.NDArray[Any], start: int) -> None:
        self._data, self._rows, self._start = data, rows, start
        self._ends: npt.NDArray[np.uint64] | None = None

    def __getitem__(self, n: int) -> tuple[str, dict[str, Scalar]]:
        begin = int(self._rows[n - 1]["id_end"]) if n else 0
        end = int(self._rows[n]["id_end"])
        return parted(self._data[self._start + begin : self._start + end])

    def holding(self, needles: Sequence[bytes]) -> Iterator[int]:
        """The documents in whose note one of these bytes stands, or begins."""
        places = np.unique([place for needle in needles for place in self._places(needle)])
        if not len(places):
            return iter(())
        ends = np.ascontiguousarray(self._rows["id_end"])
        numbers = np.searchsorted(ends, places.astype(np.uint64), side="right")
        return iter(np.unique(numbers[numbers < len(ends)]).tolist())

    def _places(self, needle: bytes) -> Iterator[int]:
        """Where it begins in the notes, in each block of them at first."""
        overlap = len(needle) - 1
        for at in range(self._start, len(self._data), _BLOCK_BYTES):
            block, place = self._data[at : at + _BLOCK_BYTES + overlap], -1
            while (place := block.find(needle, place + 1)) >= 0:
                yield at - self._start + place


def _needles(value: str, query: DocumentQuery) -> Iterator[bytes]:
    """What stands in the note of any document that matches."""
    escaped = msgspec.json.encode(value)[1:-1]
    if query.field in ("", ID):
        yield value.encode()
    if query.field == ID:
        return
    if query.is_part or not query.field:
        yield escaped
    else:
        key = msgspec.json.encode(query.field)
        yield key + b':"' + escaped + b'"'
        yield key + b":" + value.encode()
