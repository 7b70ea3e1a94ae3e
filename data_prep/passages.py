"""Finds passages that a text has in common with evaluation data: 13 units, or tokens, in a row.

A passage is a run of 13 units (Brown et al. 2020, appendix C), 26 in items written without spaces.
Units leave out case, punctuation and spacing, so a question is found however it was typeset, and
whatever tokenizer comes later. With a tokenizer, runs of 13 of its tokens count instead: exact to
the character, and blind to a changed capital letter or blank.

    passages = Passages(["gsm8k_test.jsonl"], 13, "runs/tokenizer")
    passages.hits(text)               # [{"item": "gsm8k_test.jsonl:7", "passages": 12}, …]
"""

import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from data_prep import documents
from data_prep.damaged import DamagedFile
from data_prep.lines import blocks
from data_prep.parquet import LongRow, ParquetTable
from data_prep.units import Hashes, Units, mix, shingles, split
from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import shown

_LONGEST_ITEM_BYTES = 1 << 26
_MOST_ITEMS_REPORTED = 20  # of one text


class Item(NamedTuple):
    """A record of an evaluation set: its file, and its line from 1."""

    file: str
    line: int


class PassageIndex(NamedTuple):
    """Passages of one length. hashes: uint64 [N], ascending; items: int64 [N], index of each one's
    item."""

    size: int
    hashes: Hashes
    items: npt.NDArray[np.int64]


class Passages:
    """All passages of the files, read when first asked for and in each process anew.

    run: units, or tokens of `tokenizer` where it is given. most_in_common: a passage that more
    items have is no sign of any: "Put the answer into a box" is no question of theirs. None leaves
    none out.
    """

    def __init__(
        self, files: Sequence[str], run: int, tokenizer: str = "", most_in_common: int | None = None
    ) -> None:
        self._files, self._run, self._tokenizer_file = tuple(files), run, tokenizer
        self._most_in_common = most_in_common

    def hits(self, text: str, known: Units | None = None) -> list[dict[str, Any]]:
        """The items whose passages the text has, those with most passages first.

        known: the units of the text, where they were made already.
        """
        units = self._units(text, known)
        found: list[npt.NDArray[np.int64]] = []
        for index in self.indices:
            runs = np.unique(shingles(units, index.size)) if len(units) >= index.size else units[:0]
            first = np.searchsorted(index.hashes, runs, "left")
            past = np.searchsorted(index.hashes, runs, "right")
            hits = np.flatnonzero(first < past)
            found += [index.items[first[k] : past[k]] for k in hits]
        if not found:
            return []
        items, counts = np.unique(np.concatenate(found), return_counts=True)
        order = np.argsort(-counts, kind="stable")[:_MOST_ITEMS_REPORTED].tolist()
        return [
            {"item": f"{item.file}:{item.line}", "passages": int(counts[k])}
            for k in order
            for item in [self.items[items[k]]]
        ]

    @cached_property
    def items(self) -> list[Item]:
        return [item for item, _ in self._records]

    @cached_property
    def _records(self) -> list[tuple[Item, list[str]]]:
        return [record for file in self._files for record in _read(file)]

    @cached_property
    def indices(self) -> list[PassageIndex]:
        """One for each length of a passage."""
        runs: dict[int, list[Hashes]] = {}
        owners: dict[int, list[npt.NDArray[np.int64]]] = {}
        for number, (_, texts) in enumerate(self._records):
            for text in texts:
                units, size = self._units(text), self._size(text)
                if len(units) >= size:
                    passages = np.unique(shingles(units, size))
                    runs.setdefault(size, []).append(passages)
                    owners.setdefault(size, []).append(np.full(len(passages), number))
        made = [_index(size, runs[size], owners[size]) for size in sorted(runs)]
        most = self._most_in_common
        return made if most is None else [_of_few(index, most) for index in made]

    def _size(self, text: str) -> int:
        in_tokens = bool(self._tokenizer_file)
        return 2 * self._run if not in_tokens and split(text).without_spaces else self._run

    def _units(self, text: str, known: Units | None = None) -> Hashes:
        if self._tokenizer:
            ids = self._tokenizer.encode_document(text)[:-1]  # the last ends the document
            return mix(np.asarray(ids, np.uint64) + np.uint64(1))
        return (known or split(text)).hashes

    @cached_property
    def _tokenizer(self) -> Any:
        from data_prep.tokenizer import DocumentTokenizer

        return DocumentTokenizer(self._tokenizer_file) if self._tokenizer_file else None

    def __getstate__(self) -> dict[str, Any]:
        cached = ("items", "_records", "indices", "_tokenizer")
        return {name: value for name, value in vars(self).items() if name not in cached}


def _of_few(index: PassageIndex, most: int) -> PassageIndex:
    """The passages that no more than `most` items have."""
    order = np.lexsort((index.items, index.hashes))
    hashes, items = index.hashes[order], index.items[order]
    is_new = np.append(True, (hashes[1:] != hashes[:-1]) | (items[1:] != items[:-1]))
    hashes, items = hashes[is_new], items[is_new]  # an item may have a passage in several texts
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    is_of_few = counts[inverse] <= most
    return PassageIndex(index.size, hashes[is_of_few], items[is_of_few])


def _index(size: int, runs: list[Hashes], owners: list[npt.NDArray[np.int64]]) -> PassageIndex:
    hashes, items = np.concatenate(runs), np.concatenate(owners)
    order = np.argsort(hashes, kind="stable")
    return PassageIndex(size, hashes[order], items[order])


def _read(file: str) -> Iterator[tuple[Item, list[str]]]:
    """The texts of each record; ConfigError where the file is not whole: it must be."""
    done = 0
    try:
        for number, record in enumerate(_records(file), 1):
            if record is not None:
                yield Item(file, number), list(_texts(record))
                done = number
    except (DamagedFile, LongRow, ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"evaluation set {shown(file)}, line {done + 1}: {why}") from None


def _records(file: str) -> Iterator[Any]:
    """The rows of Parquet, the lines of JSONL, None for a blank one, or the whole of a text."""
    if file.endswith(documents.PARQUET):
        with ParquetTable(file, _LONGEST_ITEM_BYTES) as table:
            for rows in table.rows(table.texts()):
                yield from rows
    elif file.endswith(documents.SUFFIXES):
        for lines, _ in blocks(file, 0, os.path.getsize(file), _LONGEST_ITEM_BYTES):
            for line in lines:
                yield _decoded(line) if line.strip() else None
    else:
        yield Path(file).read_text(encoding="utf-8")


def _decoded(line: bytes) -> Any:
    if len(line) > _LONGEST_ITEM_BYTES:
        raise ValueError(f"over {_LONGEST_ITEM_BYTES >> 20} MiB")
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError:
        return json.loads(line)  # takes NaN besides, as Python writes it


def _texts(value: Any) -> Iterator[str]:
    """All strings within a record, however deep."""
    if isinstance(value, Exception):
        raise value
    if isinstance(value, str):
        yield value.encode("utf-8", "replace").decode()
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
