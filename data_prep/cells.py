"""Describes cells: the documents of one combination of labels that lie together in a shard.

A shard holds many cells, one after another, each a stretch of its tokens and of its documents. So a
corpus of a hundred thousand combinations of labels has no more files than its tokens need, and a
mixture can still take any combinations.

    cell.path, cell.start, cell.tokens      # tokens [start, start + tokens) of PATH.bin
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from data_prep.labels import Labels
from data_prep.packed import Packed
from data_prep.stretches import leaves


@dataclass(frozen=True)
class Cell:
    """The inventory's row of one cell.

    path: of the shard, relative to the inventory's folder; bytes: of the documents' text in UTF-8;
    tokens: each document's last one, <|endoftext|>, included, and filler; start, first: the number
    of its first token, and of its first document, in the shard. packed: None where texts simply
    follow each other; otherwise documents counts those that begin here, cut those of them that are
    longer than a row, and pieces the documents of the files.
    """

    path: str
    labels: Labels
    documents: int
    tokens: int
    bytes: int
    packed: Packed | None = None
    cut: int = 0
    pieces: int = 0
    start: int = 0
    first: int = 0

    @property
    def in_files(self) -> int:
        """Number of its documents in the .idx and .docs."""
        return self.pieces if self.packed else self.documents

    @property
    def place(self) -> tuple[str, int]:
        """The key that an inventory is sorted by."""
        return self.path, self.start

    def as_json(self) -> dict[str, Any]:
        counts = {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes}
        row = {"path": self.path, **self.labels._asdict(), **counts}
        if self.packed:
            row |= {"packed": self.packed.as_json(), "cut": self.cut, "pieces": self.pieces}
        return row | ({"start": self.start, "first": self.first} if self.start else {})

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Cell:
        """Raises KeyError, TypeError or ValueError where the row is no cell."""
        path, *labels = (_word(row, name) for name in ("path", *Labels._fields))
        if leaves(path):
            raise ValueError(f"the shard {path!r} lies outside of its folder")
        packed = Packed.from_json(row["packed"]) if "packed" in row else None
        counts = {name: _count(row, name) for name in ("documents", "tokens", "bytes")}
        more = {name: _count(row, name, 0) for name in ("cut", "pieces", "start", "first")}
        return cls(path, Labels(*labels), packed=packed, **counts, **more)

    def __add__(self, other: Cell) -> Cell:
        """Join a cell of the same labels that follows it."""
        packed = [cell.packed for cell in (self, other) if cell.packed]
        return replace(
            self,
            documents=self.documents + other.documents,
            tokens=self.tokens + other.tokens,
            bytes=self.bytes + other.bytes,
            packed=Packed.of_all(packed) if packed else None,
            cut=self.cut + other.cut,
            pieces=self.pieces + other.pieces,
        )


def _word(row: dict[str, Any], name: str) -> str:
    if not isinstance(value := row[name], str):
        raise ValueError(f"{name} = {value!r:.60}; valid: a text")
    return value


def _count(row: dict[str, Any], name: str, *default: int) -> int:
    value = row.get(name, *default) if default else row[name]
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} = {value!r:.60}; valid: a whole number from 0")
    return value


def laid_out(path: str, cells: Iterable[Cell]) -> Iterator[Cell]:
    """The cells of a shard in this order, with their places; neighbours alike become one."""
    last: Cell | None = None
    for cell in cells:
        if last and last.labels == cell.labels:
            last += cell
            continue
        start, first = (last.start + last.tokens, last.first + last.in_files) if last else (0, 0)
        if last:
            yield last
        last = replace(cell, path=path, start=start, first=first)
    if last:
        yield last
