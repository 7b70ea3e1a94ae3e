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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from data_prep.indexed import IndexedReader
from data_prep.inventory import Inventory
from data_prep.noted import Scalar
from data_prep.pool import Pool
from data_prep.shards import DOCS_MAGIC, NO_FILE, ORIGIN, Note, Origin, note_of, origin_of
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

    Says on stderr how far it is, and how long it will take. However many match, their numbers wait
    on the disk, and what they brought is read as it is asked for.
    """
    _check(inventory, query)
    paths = paths_of(inventory)
    sizes = [os.path.getsize(f"{inventory.folder / path}.docs") for path in paths]
    workers = workers if sum(sizes) > _SERIAL_BYTES else 1
    search = ShardSearch(inventory.folder, inventory.inputs, query)
    places: dict[str, tuple[int, int]] = {}
    with TemporaryFile() as numbers:
        with Bar("", sum(sizes), in_megabytes) as bar:
            bar.stage("searching", sum(sizes), sum(sizes))
            with Pool(max(1, min(workers, len(paths))), search, __name__) as pool:
                for path, found in pool.run(_in_shard, [(path,) for path in paths], bar.advance):
                    if len(found):
                        places[path] = numbers.tell(), len(found)
                        numbers.write(found.tobytes())
        for path in paths:
            if path in places:
                at, count = places[path]
                numbers.seek(at)
                yield from _read(search, path, np.frombuffer(numbers.read(8 * count), np.int64))


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
) -> tuple[str, npt.NDArray[np.int64]]:
    """The path again, and the numbers of its documents that match."""
    size = os.path.getsize(f"{search.folder / path}.docs")
    with _notes(search.folder / path) as notes:
        found = np.fromiter(_matching(notes, search), np.int64)
    tick(size)
    return path, found


def _read(
    search: ShardSearch, path: str, numbers: npt.NDArray[np.int64]
) -> Iterator[FoundDocument]:
    with _notes(search.folder / path) as notes:
        for n in numbers.tolist():
            yield FoundDocument(
                path, n, origin_of(notes.rows[n], notes[n], search.inputs, notes.prefix)
            )


@contextmanager
def _notes(prefix: Path) -> Iterator[_Notes]:
    count = IndexedReader(prefix).num_documents
    texts_at = len(DOCS_MAGIC) + ORIGIN.itemsize * count
    with open(f"{prefix}.docs", "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < texts_at:
            raise ConfigError(f"{prefix}.docs is cut short: {size:,} bytes for {count:,} documents")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        rows = np.frombuffer(data, ORIGIN, count, len(DOCS_MAGIC))
        yield _Notes(prefix, data, rows, texts_at)


def _matching(notes: _Notes, search: ShardSearch) -> Iterator[int]:
    query, rows = search.query, notes.rows
    candidates: Sequence[int]
    if query.line:
        number = search.inputs.index(query.line[0])
        here = (rows["file"] == number) & (rows["line"] == query.line[1])
        return iter(np.flatnonzero(here).tolist())
    if len(query.values) >= MANY:
        candidates = range(len(rows))
    else:
        candidates = notes.holding([n for value in query.values for n in _needles(value, query)])
    found = (n for n in candidates if rows[n]["file"] != NO_FILE)
    return (n for n in found if query.matches(*notes[n]))


class _Notes:
    """The ids and fields of a shard's documents, by number."""

    def __init__(
        self, prefix: Path, data: mmap.mmap | bytes, rows: npt.NDArray[Any], start: int
    ) -> None:
        self.prefix, self.rows, self._data, self._start = prefix, rows, data, start

    def __getitem__(self, n: int) -> Note:
        begin = int(self.rows[n - 1]["id_end"]) if n else 0
        end = int(self.rows[n]["id_end"])
        return note_of(self._data[self._start + begin : self._start + end], n, self.prefix)

    def holding(self, needles: Sequence[bytes]) -> list[int]:
        """The documents in whose note one of these bytes stands, or begins."""
        is_holding_N = np.zeros(len(self.rows), np.bool_)
        ends_N = np.ascontiguousarray(self.rows["id_end"].astype(np.int64))
        for needle in needles:
            for at in range(self._start, len(self._data), _BLOCK_BYTES):
                block = self._data[at : at + _BLOCK_BYTES + len(needle) - 1]
                _look(block, needle, at - self._start, ends_N, is_holding_N)
        found: list[int] = np.flatnonzero(is_holding_N).tolist()
        return found


def _look(
    block: bytes,
    needle: bytes,
    start: int,
    ends_N: npt.NDArray[np.int64],
    is_holding_N: npt.NDArray[np.bool_],
) -> None:
    """Marks the documents in which it begins; each is left at its first."""
    place = block.find(needle)
    while place >= 0:
        n = int(np.searchsorted(ends_N, start + place, side="right"))
        if n == len(ends_N):  # behind the notes
            return
        is_holding_N[n] = True
        place = block.find(needle, max(place + 1, int(ends_N[n]) - start))


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
