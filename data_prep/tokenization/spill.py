"""Stores tokenized documents on their way to the shards: runs sorted by label and a random key.

To shuffle more than memory holds is to sort it by random keys (Knuth, The Art of Computer
Programming 3, 5.4): documents are collected up to RUN_BYTES, sorted, and written as a run; a shard
is one range of keys, read from every run in one piece each, and sorted. A document's key is a hash
of the seed and of where the document stands, so that the order depends on nothing else.

    run = write_run(path, [table, table])       # of some MB each -> SpilledRun: its sections
    table, inputs = read_piece(sources, dtype, piece=0, pieces=3)
    chunks(table, inputs)                       # for write_shard

A run, for D documents: keys (u64 × D), ROW × D, their tokens' ids, and their own ids, with the
fields that are kept (`kept_fields.note`), end to end.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.shards import ORIGIN, DocumentChunk
from megatron_qwen3.storage.whole import write_whole

CHUNK = 1 << 20  # elements that are moved at a time
SHORT = 48  # elements of a piece on average: where slices begin to be faster
ROW = np.dtype(
    [
        ("start", "<u8"),  # of its tokens, in the run
        ("id_start", "<u8"),  # of its id and fields, likewise
        ("line", "<u8"),
        ("length", "<u4"),  # in tokens
        ("id_bytes", "<u4"),
        ("text_bytes", "<u4"),
        ("labels", "<u4"),
    ]
)


class TokenTable(NamedTuple):
    """Documents: tokens end to end, keys u64 [documents], ROW [documents], ids u8 end to end.

    The rows' starts point into this table's tokens and ids.
    """

    tokens: npt.NDArray[Any]
    keys: npt.NDArray[np.uint64]
    rows: npt.NDArray[Any]
    ids: npt.NDArray[np.uint8]


class Section(NamedTuple):
    """The documents of one combination of labels, by its number, within a run.

    note_bytes: of their ids and fields; 0 in runs that do not say.
    """

    labels: int
    first: int
    documents: int
    tokens: int
    bytes: int
    note_bytes: int = 0


class SpilledRun(NamedTuple):
    """A run's file, its counts, and its sections."""

    name: str
    tokens: int
    documents: int
    sections: list[Section]


class InputSection(NamedTuple):
    """A section, with the number of its input and of the lines there before its unit."""

    path: str
    run_tokens: int
    run_documents: int
    section: Section
    input: int
    lines_before: int


def keys(seed: int, input: int, positions: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """A random key for each place in an input: splitmix64 (Steele et al. 2014) of all three."""
    mixed = np.full(np.shape(positions), seed & (1 << 64) - 1, np.uint64)
    for word in (np.uint64(input), np.asarray(positions, np.uint64)):
        mixed = (mixed ^ word) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def concatenate(tables: Sequence[TokenTable]) -> TokenTable:
    """The documents of all, their rows' starts moved to where tokens and ids have come to lie."""
    rows = []
    num_tokens = num_bytes = 0
    for table in tables:
        moved = table.rows.copy()
        moved["start"] += num_tokens
        moved["id_start"] += num_bytes
        rows.append(moved)
        num_tokens += len(table.tokens)
        num_bytes += len(table.ids)
    return TokenTable(
        np.concatenate([table.tokens for table in tables]),
        np.concatenate([table.keys for table in tables]),
        np.concatenate(rows),
        np.concatenate([table.ids for table in tables]),
    )


def write_run(path: Path, tables: Sequence[TokenTable]) -> SpilledRun:
    """Sort the documents by label and key, and write them as one run."""
    table = concatenate(tables)
    order = np.lexsort((table.keys, table.rows["labels"]))
    rows = table.rows[order]
    tokens = _gather(table.tokens, rows["start"], rows["length"])
    ids = _gather(table.ids, rows["id_start"], rows["id_bytes"])
    sorted_rows = rows.copy()
    for start, length in (("start", "length"), ("id_start", "id_bytes")):
        sorted_rows[start] = np.cumsum(rows[length], dtype=np.uint64) - rows[length]
    parts = chain([table.keys[order], sorted_rows], tokens, ids)
    write_whole(path, (part.data for part in parts))
    return SpilledRun(path.name, len(table.tokens), len(rows), list(_sections(rows)))


def read_piece(
    sources: Sequence[InputSection],
    dtype: np.dtype[Any],
    piece: int,
    pieces: int,
    tail: Sequence[int] = (),
) -> tuple[TokenTable, npt.NDArray[np.uint32]]:
    """(documents with keys in the piece-th of `pieces` equal ranges, the input of each), sorted.

    tail: ids that the table's tokens end with, which are of no document.
    """
    low, high = ((k << 64) // pieces for k in (piece, piece + 1))
    tables = [_read(source, dtype, low, high) for source in sources]
    inputs = np.repeat(
        np.array([source.input for source in sources], np.uint32), [len(t.rows) for t in tables]
    )
    if len(tail):
        _, keys, rows, ids = tables[0]
        tables.append(TokenTable(np.asarray(tail, dtype), keys[:0], rows[:0], ids[:0]))
    table = concatenate(tables)
    order = np.lexsort((table.rows["line"], inputs, table.keys))
    return table._replace(keys=table.keys[order], rows=table.rows[order]), inputs[order]


def chunks(table: TokenTable, inputs: npt.NDArray[np.uint32]) -> Iterator[DocumentChunk]:
    """The documents in the order of their rows, some MB at a time."""
    for part in _stretches(table.rows["length"]):
        rows = table.rows[part]
        origins = np.empty(len(rows), ORIGIN)
        origins["file"], origins["line"] = inputs[part], rows["line"]
        origins["id_end"] = np.cumsum(rows["id_bytes"], dtype=np.uint64)
        (tokens,) = _gather(table.tokens, rows["start"], rows["length"])
        ids = b"".join(part.data for part in _gather(table.ids, rows["id_start"], rows["id_bytes"]))
        yield DocumentChunk(tokens, rows["length"].astype(np.int64), origins, ids)


def _sections(rows: npt.NDArray[Any]) -> Iterator[Section]:
    """The stretches of sorted rows that have the same labels."""
    firsts = np.flatnonzero(np.diff(rows["labels"], prepend=rows["labels"][0] ^ 1) != 0)
    for first, end in zip(firsts.tolist(), [*firsts[1:].tolist(), len(rows)], strict=True):
        part = rows[first:end]
        tokens, size, notes = (
            int(part[name].sum(dtype=np.int64)) for name in ("length", "text_bytes", "id_bytes")
        )
        yield Section(int(part["labels"][0]), first, end - first, tokens, size, notes)


def _read(source: InputSection, dtype: np.dtype[Any], low: int, high: int) -> TokenTable:
    """A section's documents with keys in [low, high), as copies: a map holds its file open."""
    data = np.memmap(source.path, np.uint8, "r")
    rows_at = 8 * source.run_documents
    tokens_at = rows_at + ROW.itemsize * source.run_documents
    ids_at = tokens_at + dtype.itemsize * source.run_tokens
    section = slice(source.section.first, source.section.first + source.section.documents)
    keys = data[:rows_at].view("<u8")[section]
    start = int(np.searchsorted(keys, np.uint64(low)))
    end = int(np.searchsorted(keys, np.uint64(high - 1), side="right"))
    rows = data[rows_at:tokens_at].view(ROW)[section][start:end].copy()
    tokens = data[tokens_at:ids_at].view(dtype)[_span(rows, "start", "length")]
    ids = data[ids_at:][_span(rows, "id_start", "id_bytes")]
    rows["line"] += source.lines_before
    return TokenTable(np.array(tokens), np.array(keys[start:end]), rows, np.array(ids))


def _span(rows: npt.NDArray[Any], start: str, length: str) -> slice:
    """The span that sorted rows point into, in one piece; their starts then count from it."""
    if not len(rows):
        return slice(0, 0)
    first, last = int(rows[start][0]), int(rows[start][-1])
    rows[start] -= first
    return slice(first, last + int(rows[length][-1]))


def _gather(
    data: npt.NDArray[Any], starts: npt.NDArray[Any], lengths: npt.NDArray[Any]
) -> Iterator[npt.NDArray[Any]]:
    """The pieces of `data` that begin at `starts`, end to end, some MB at a time."""
    for part in _stretches(lengths):
        yield _gathered(data, starts[part].astype(np.int64), lengths[part].astype(np.int64))


def _gathered(
    data: npt.NDArray[Any], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    ends = np.cumsum(lengths)
    if ends[-1] < SHORT * len(starts):  # an index of every element is faster than slices
        index = np.repeat(starts - (ends - lengths), lengths)
        return data[index + np.arange(len(index))]
    view, size = data.view("u1").data, data.dtype.itemsize
    slices = zip((starts * size).tolist(), ((starts + lengths) * size).tolist(), strict=True)
    return np.frombuffer(b"".join([view[start:end] for start, end in slices]), data.dtype)


def _stretches(lengths: npt.NDArray[Any]) -> Iterator[slice]:
    """Cuts documents into stretches of about CHUNK elements, one document at least."""
    ends = np.cumsum(lengths, dtype=np.int64)
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + CHUNK, side="right")))
        yield slice(start, end)
        start = end
