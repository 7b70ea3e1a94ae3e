"""Stores rows that the tasks of a stage leave for those of the next: a stretch per reader.

    write(path, counts, pieces)                  # counts: rows of each reader, in their order
    for rows in read(path, PAIR, reader): ...    # those of one reader; nothing else is read
    read_range(path, KEYED, band, low, high)     # rows by key, of a file that `write_sorted` made

A file is the number of its readers, where the rows of each end (both int64), and the rows. One of
sorted rows has a reader for each cell of a band: keys are hashes, so equal ranges of them hold
about as many rows, and some 4,096 of a band make a cell. A file that lacks rows is an error.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from data_prep.clean.files import read_rows
from data_prep.units import Hashes
from megatron_qwen3.storage.whole import make, whole_file

Rows = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]
KEYED = np.dtype([("key", "<u8"), ("number", "<u4")])  # of a document within its task
DIGEST = np.dtype([("key", "<u8"), ("rest", "<u8"), ("number", "<u4")])  # 128 bits of a hash
KEYS = 1 << 64  # how many there are
_CELL_ROWS = 1 << 12
_AT_ONCE = 1 << 16  # rows


def write(path: Path, counts: Counts, pieces: Iterable[Rows]) -> None:
    """pieces: the rows of all readers, in their order; counts [readers] may be filled meanwhile."""
    make(path.parent)
    with whole_file(path) as file:
        file.write(bytes(8 * (1 + len(counts))))
        for piece in pieces:
            file.write(np.ascontiguousarray(piece).data.cast("B") if len(piece) else b"")
        file.seek(0)
        file.write(np.array([len(counts), *np.cumsum(counts)], "<i8").tobytes())


def read(path: Path, dtype: np.dtype[Any], reader: int) -> Iterator[Rows]:
    """The rows of a reader, some at a time."""
    with path.open("rb") as file:
        start, end = _seek(file, dtype, _readers(file), reader, reader + 1)
        for at in range(start, end, _AT_ONCE):
            yield read_rows(file, dtype, min(_AT_ONCE, end - at))


def count(path: Path, dtype: np.dtype[Any], reader: int) -> int:
    """How many rows a reader has."""
    with path.open("rb") as file:
        start, end = _seek(file, dtype, _readers(file), reader, reader + 1)
    return end - start


def read_all(paths: Iterable[Path], dtype: np.dtype[Any], reader: int) -> Rows:
    """The rows of a reader in several files, one after the other."""
    pieces = [rows for path in paths for rows in read(path, dtype, reader)]
    return np.concatenate([np.zeros(0, dtype), *pieces])


def write_sorted(path: Path, rows_of: Callable[[int], Rows], bands: int, documents: int) -> None:
    """Rows of each band by their key; those of equal keys stay in order.

    rows_of(band): fields `key` to `number`; documents: of a band.
    """
    cells = 1 << max(0, (documents // _CELL_ROWS).bit_length())
    counts = np.zeros(bands * cells, np.int64)

    def pieces() -> Iterator[Rows]:
        for band in range(bands):
            rows = rows_of(band)
            names = rows.dtype.names or ()
            rows = rows[np.lexsort([rows[name] for name in reversed(names[:-1])])]
            of_cells = np.bincount(_cell(rows["key"], cells), minlength=cells)
            counts[band * cells : (band + 1) * cells] = of_cells
            yield rows

    write(path, counts, pieces())


def read_range(
    path: Path, dtype: np.dtype[Any], band: int, bands: int, low: int, high: int
) -> Rows:
    """The rows of a band whose keys are in [low, high), sorted."""
    lowest, highest = np.uint64(low), np.uint64(high - 1)
    with path.open("rb") as file:
        readers = _readers(file)
        cells = readers // bands
        first, last = band * cells + _cell(np.array([lowest, highest]), cells)
        start, end = _seek(file, dtype, readers, int(first), int(last) + 1)
        rows = read_rows(file, dtype, end - start)
    keys = rows["key"]
    return rows[np.searchsorted(keys, lowest) : np.searchsorted(keys, highest, "right")]


def _readers(file: IO[bytes]) -> int:
    return int(read_rows(file, "<i8", 1)[0])


def _seek(
    file: IO[bytes], dtype: np.dtype[Any], readers: int, reader: int, past: int
) -> tuple[int, int]:
    """Go to the rows of readers [reader, past), which are those from the one to the other."""
    assert 0 <= reader < past <= readers, "a reader that the file was not written for"
    before = max(0, reader - 1)
    file.seek(8 * (1 + before))
    ends = read_rows(file, "<i8", past - before)
    start = int(ends[0]) if reader else 0
    file.seek(8 * (1 + readers) + start * dtype.itemsize)
    return start, int(ends[-1])


def _cell(keys: Hashes, cells: int) -> npt.NDArray[np.int64]:
    """Which of so many equal ranges each key is in; cells: a power of two."""
    bits = cells.bit_length() - 1
    return ((keys >> np.uint64(63 - bits)) >> np.uint64(1)).astype(np.int64)
