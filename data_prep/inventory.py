"""Reads and writes the inventory of a folder of shards: its cells, and their tokenizer.

`inventory.parquet` appears when all shards are whole. It has a row for each cell, in the order of
their places, and is read column by column and block by block, only as far as it is asked for: at
tens of trillions of tokens there are millions of cells. `inventory.json`, which has one row for
each shard of a single cell, is read as well.

    inventory = read_inventory("data/tokens")
    for cell in inventory.cells: ...
    for columns in inventory.columns(): ...         # the same, many cells at once
    totals(inventory, ["language"])[("eng_Latn",)]["tokens"]
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from data_prep.cells import Cell
from data_prep.damaged import DamagedFile
from data_prep.json_files import VERSION, json_bytes, read_json
from data_prep.labels import LENGTHS, Labels
from data_prep.packed import Packed
from data_prep.parquet import damage, import_parquet
from data_prep.stretches import leaves
from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.whole import whole_file

INVENTORY, INVENTORY_JSON = "inventory.parquet", "inventory.json"
VERSION_PARQUET = 2
BLOCK_CELLS = 1 << 16  # of a row group, which is read at once
_NOT_WHOLE = "the folder of tokenized documents is not whole yet, or another one"
_WORDS = ("path", *Labels._fields)
_COUNTS = ("start", "first", "documents", "tokens", "bytes", "cut", "pieces")
_PACKED = ("row_length", "filler", *LENGTHS)  # the last: tokens of texts of each length

Int64 = npt.NDArray[np.int64]


class Columns(NamedTuple):
    """Some cells, N of them. words: by column ("path" and labels) its values, and of each cell the
    number of its own. counts: by column, int64 [N]; row_length is 0 where nothing is packed."""

    words: dict[str, tuple[list[str], Int64]]
    counts: dict[str, Int64]

    def keys(self, names: Sequence[str]) -> tuple[list[tuple[str, ...]], Int64]:
        """The combinations of these words that there are, and of each cell the number of its own,
        both in the order of their first cells."""
        codes_N = np.zeros(len(self.counts["tokens"]), np.int64)
        for name in names:
            values, own_N = self.words[name]
            _, codes_N = np.unique(codes_N * len(values) + own_N, return_inverse=True)
        _, firsts, codes_N = np.unique(codes_N, return_index=True, return_inverse=True)
        order = np.argsort(firsts)
        ranks = np.empty_like(order)
        ranks[order] = np.arange(len(order))
        first_cells = firsts[order]
        columns = (
            [values[k] for k in own_N[first_cells].tolist()]
            for values, own_N in map(self.words.__getitem__, names)
        )
        return list(zip(*columns, strict=True)), ranks[codes_N]

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Columns:
        rows = [{"path": cell.path, **cell.labels._asdict()} for cell in cells]
        words = {name: _numbered([row[name] for row in rows]) for name in _WORDS}
        counts = {name: _ints([getattr(cell, name) for cell in cells]) for name in _COUNTS}
        packed = [_packed_row(cell.packed) for cell in cells]
        for k, name in enumerate(_PACKED):
            counts[name] = _ints([row[k] for row in packed])
        return cls(words, counts)

    def cells(self) -> Iterator[Cell]:
        words = [[values[k] for k in own_N.tolist()] for values, own_N in self.words.values()]
        counts = {name: column.tolist() for name, column in self.counts.items()}
        rows = zip(*words, *(counts[name] for name in (*_COUNTS, *_PACKED)), strict=True)
        for path, *row in rows:
            labels, (start, first, documents, tokens, size, cut, pieces) = row[:6], row[6:13]
            row_length, filler, *texts = row[13:]
            known = {length: n for length, n in zip(LENGTHS, texts, strict=True) if n}
            packed = Packed(row_length, filler, known) if row_length else None
            yield Cell(
                path, Labels(*labels), documents, tokens, size, packed, cut, pieces, start, first
            )


class StoredCells(Sequence[Cell]):
    """The cells of an inventory.parquet, read block by block when they are asked for."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        sizes = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
        self._ends = np.cumsum([0, *sizes])
        self._block: tuple[int, list[Cell]] = (-1, [])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> Cell: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Cell, ...]: ...
    def __getitem__(self, index: int | slice) -> Cell | tuple[Cell, ...]:
        if isinstance(index, slice):
            return tuple(self[k] for k in range(*index.indices(len(self))))
        n = range(len(self))[index]
        block = int(np.searchsorted(self._ends, n, side="right")) - 1
        if self._block[0] != block:
            self._block = block, list(self.columns_of(block).cells())
        return self._block[1][n - int(self._ends[block])]

    def __iter__(self) -> Iterator[Cell]:
        for columns in self.columns():
            yield from columns.cells()

    def columns(self) -> Iterator[Columns]:
        for block in range(len(self._ends) - 1):
            yield self.columns_of(block)

    def columns_of(self, block: int) -> Columns:
        with _damage(self._path):
            table = self._file.read_row_group(block)
            columns = {name: table.column(name).combine_chunks() for name in _kinds()}
        try:
            words = {name: _words(name, columns[name]) for name in _WORDS}
            counts = {name: _counts(name, columns[name]) for name in (*_COUNTS, *_PACKED)}
        except ValueError as error:
            raise ConfigError(f"{self._path} is not an inventory: {error}") from None
        return Columns(words, counts)


@dataclass(frozen=True)
class Inventory:
    """A folder of shards that is whole. tokenizer: its path there, sha256 and end_of_document."""

    folder: Path
    tokenizer: dict[str, Any]
    vocab_size: int
    inputs: tuple[str, ...]
    cells: Sequence[Cell]

    def columns(self) -> Iterator[Columns]:
        """All cells in the order of their places, block by block."""
        if isinstance(self.cells, StoredCells):
            yield from self.cells.columns()
        else:
            for cells in _blocks(sorted(self.cells, key=lambda cell: cell.place)):
                yield Columns.of(cells)


def paths(inventory: Inventory) -> list[str]:
    """Paths of all shards that have tokens."""
    found: dict[str, None] = {}
    for columns in inventory.columns():
        values, own_N = columns.words["path"]
        has = np.unique(own_N[columns.counts["tokens"] > 0])
        found.update((values[k], None) for k in has.tolist())
    return list(found)


def totals(inventory: Inventory, by: Sequence[str]) -> dict[tuple[str, ...], Counter[str]]:
    """By labels: the sums of documents, tokens, bytes, filler, and how many cells there are, and
    are packed."""
    found: dict[tuple[str, ...], Counter[str]] = {}
    for columns in inventory.columns():
        keys, key_N = columns.keys(by)
        is_packed_N = columns.counts["row_length"] > 0
        sums = {"cells": np.bincount(key_N, minlength=len(keys))}
        sums["packed"] = np.bincount(key_N[is_packed_N], minlength=len(keys))
        for name in (*_COUNTS[2:], "filler"):
            sums[name] = np.zeros(len(keys), np.int64)
            np.add.at(sums[name], key_N, columns.counts[name])
        for k, key in enumerate(keys):
            row = {name: int(column[k]) for name, column in sums.items()}
            found.setdefault(key, Counter()).update(row)
    return found


def write_inventory(inventory: Inventory, cells: Iterable[Cell] | None = None) -> None:
    """Make the shards visible to readers of the folder.

    cells: in the order of their places, where they are too many to be held at once.
    """
    import pyarrow

    about = {
        "version": VERSION_PARQUET,
        "tokenizer": inventory.tokenizer,
        "vocab_size": inventory.vocab_size,
        "inputs": inventory.inputs,
    }
    ordered = sorted(inventory.cells, key=lambda cell: cell.place) if cells is None else cells
    schema = pyarrow.schema(list(_kinds().items()), metadata={"inventory": json_bytes(about)})
    with (
        whole_file(inventory.folder / INVENTORY) as file,
        import_parquet().ParquetWriter(file, schema) as writer,
    ):
        for block in _blocks(ordered):
            assert all(a.place < b.place for a, b in pairwise(block))
            writer.write_table(_table(Columns.of(block), schema))


def read_inventory(folder: str | os.PathLike[str]) -> Inventory:
    """The inventory of a folder; ConfigError where there is none, or it is not one."""
    folder = Path(folder)
    path = folder / INVENTORY
    if not path.exists() and (folder / INVENTORY_JSON).exists():
        return _read_json(folder)
    parquet = import_parquet()
    try:
        with _damage(path):
            file = parquet.ParquetFile(path, read_dictionary=list(_WORDS))
        about = json.loads((file.schema_arrow.metadata or {})[b"inventory"])
        if about["version"] != VERSION_PARQUET:
            raise ConfigError(f"{path} is of version {about['version']}; known: {VERSION_PARQUET}")
        _check_schema(file.schema_arrow)
        return _inventory(folder, about, StoredCells(path, file))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: {_NOT_WHOLE}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise _none(path, error) from None


def _read_json(folder: Path) -> Inventory:
    path = folder / INVENTORY_JSON
    content = read_json(path, _NOT_WHOLE, VERSION)
    try:
        return _inventory(folder, content, tuple(map(Cell.from_json, content["shards"])))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _none(path, error) from None


def _none(path: Path, error: Exception) -> ConfigError:
    if isinstance(error, ConfigError):
        return error
    told = error if isinstance(error, ValueError) else repr(error)
    return ConfigError(f"{path} is not an inventory: {told}")


def _inventory(folder: Path, about: dict[str, Any], cells: Sequence[Cell]) -> Inventory:
    tokenizer, vocab_size, inputs = about["tokenizer"], about["vocab_size"], about["inputs"]
    if not isinstance(tokenizer, dict):
        raise ValueError(f"tokenizer = {tokenizer!r:.60}; valid: an object")
    if type(vocab_size) is not int:
        raise ValueError(f"vocab_size = {vocab_size!r:.60}; valid: a whole number")
    if not (isinstance(inputs, list) and all(isinstance(name, str) for name in inputs)):
        raise ValueError(f"inputs = {inputs!r:.60}; valid: a list of names")
    return Inventory(folder, tokenizer, vocab_size, tuple(inputs), cells)


def _kinds() -> dict[str, Any]:
    """The columns and their types, as Arrow has them."""
    import pyarrow

    word = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    words = dict.fromkeys(_WORDS, word)
    return words | dict.fromkeys((*_COUNTS, *_PACKED), pyarrow.int64())


def _check_schema(schema: Any) -> None:
    """ValueError where a column is missing, there twice or of another type."""
    for name, kind in _kinds().items():
        if (count := schema.names.count(name)) != 1:
            raise ValueError(f"{count} columns {name}; valid: one")
        if (found := schema.field(name).type) != kind:
            raise ValueError(f"column {name} is of {found}; valid: {kind}")


def _words(name: str, column: Any) -> tuple[list[str], Int64]:
    if column.null_count or column.dictionary.null_count:
        raise ValueError(f"column {name} has no value of a cell")
    values = column.dictionary.to_pylist()
    if name == "path" and (outside := next(filter(leaves, values), "")):
        raise ValueError(f"the shard {outside!r} lies outside of its folder")
    return values, _numbers(column.indices, "<i4")


def _counts(name: str, column: Any) -> Int64:
    if column.null_count:
        raise ValueError(f"column {name} has no value of a cell")
    values = _numbers(column, "<i8")
    if len(values) and values.min() < 0:
        raise ValueError(f"column {name} has {values.min()}; valid: 0 or more")
    return values


def _numbers(column: Any, dtype: str) -> Int64:
    """A column of Arrow, none of it missing. (Its own way to numpy loads pandas, for a second.)"""
    width = np.dtype(dtype).itemsize
    data = column.buffers()[1]
    return _ints(np.frombuffer(data, dtype, len(column), column.offset * width))


def _blocks(cells: Iterable[Cell]) -> Iterator[list[Cell]]:
    rest = iter(cells)
    while block := list(islice(rest, BLOCK_CELLS)):
        yield block


def _table(columns: Columns, schema: Any) -> Any:
    import pyarrow

    arrays = [
        pyarrow.DictionaryArray.from_arrays(pyarrow.array(own_N, pyarrow.int32()), values)
        for values, own_N in columns.words.values()
    ]
    arrays += [pyarrow.array(column) for column in columns.counts.values()]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def _numbered(words: Sequence[str]) -> tuple[list[str], Int64]:
    numbers: dict[str, int] = {}
    own = [numbers.setdefault(word, len(numbers)) for word in words]
    return list(numbers), _ints(own)


def _packed_row(packed: Packed | None) -> tuple[int, ...]:
    if packed is None:
        return (0,) * len(_PACKED)
    return (packed.row_length, packed.filler, *(packed.texts.get(name, 0) for name in LENGTHS))


def _ints(values: npt.ArrayLike) -> Int64:
    return np.asarray(values, np.int64)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Raise Arrow's errors on a file that makes no sense as a ConfigError."""
    try:
        with damage():
            yield
    except DamagedFile as error:
        raise ConfigError(f"{path} is not an inventory, or damaged: {error}") from None
