"""Reads and writes Megatron's IndexedDataset (PREFIX.bin and PREFIX.idx) with numpy alone.

PREFIX.bin is one stream of token ids; PREFIX.idx has the width of an id and documents' beginnings.
The files are Megatron-LM's byte for byte, so either side reads the other's, here without torch.

    with IndexedWriter("runs/data/general", token_dtype(vocab_size)) as writer:
        writer.add_document(token_ids)  # or add_documents: many at once, end to end
    reader = IndexedReader("runs/data/general")
    reader.tokens[a:b]                  # memory-mapped, nothing is read before it is asked for

The .idx file, little-endian, for S sequences that make D documents: magic (9 bytes), version (u64),
dtype code (u8), S (u64), D + 1 (u64), lengths in tokens (i32 × S), byte offsets (i64 × S),
documents as boundaries between sequences (i64 × (D + 1)). Of tokens that are packed into R rows of
one length (`lay_out.py`) there follow, where Megatron's readers do not look and ours of old refuse
the file: magic (8 bytes), length of a row (u64), how many tokens of each row are text (i32 × R).
At the end, likewise, which documents were removed since (`removed.py`).
"""

import os
import stat
import struct
from array import array
from bisect import bisect_left
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from data_prep.removed import at_end
from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.whole import whole_file

_BLOCKS, _BLOCK = 16, 256  # parts of an index that are checked on opening: some 80 KB
_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, document boundaries
_ROWS = struct.Struct("<8sQ")  # magic, length of a row
_ROWS_MAGIC = b"QWENROWS"
_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The type in which Megatron stores ids of this vocabulary: uint16 below 65,500, else int32."""
    return np.dtype("<u2") if vocab_size < 65_500 else np.dtype("<i4")


class IndexedWriter:
    """Writes one PREFIX.bin/.idx pair, one sequence per document.

    Both grow under other names (`whole_file`). `finalize` gives the .bin its own, then the .idx:
    where an .idx lies, its .bin is whole. Leaving the `with` block by an exception removes both.
    """

    def __init__(self, prefix: str | os.PathLike[str], dtype: npt.DTypeLike) -> None:
        self._prefix = os.fspath(prefix)
        self._dtype = np.dtype(dtype).newbyteorder("<")
        codes = [code for code, known in _DTYPES.items() if known == self._dtype]
        if not codes:
            raise ValueError(f"{self._prefix}: token ids cannot be stored as {self._dtype}")
        self._code = codes[0]
        self._limits = np.iinfo(self._dtype)
        self._lengths = array("i")
        self._rows = b""
        Path(self._prefix).parent.mkdir(parents=True, exist_ok=True)
        self._files = ExitStack()  # the last that is entered is the first to get its name
        self._idx = self._files.enter_context(whole_file(Path(f"{self._prefix}.idx")))
        self._bin = self._files.enter_context(whole_file(Path(f"{self._prefix}.bin")))

    def add_document(self, tokens: npt.ArrayLike) -> None:
        """Append one document's token ids [length]; ValueError if one does not fit the dtype."""
        ids = np.asarray(tokens)
        self.add_documents(ids, [ids.size])

    def add_documents(self, tokens: npt.NDArray[Any], lengths: npt.ArrayLike) -> None:
        """Append documents whose ids lie end to end in `tokens`, of `lengths` [documents].

        ValueError if an id does not fit the dtype, or the lengths do not add up to the tokens.
        """
        sizes = np.asarray(lengths, dtype=np.intc)
        if sizes.sum(dtype=np.int64) != tokens.size:
            raise ValueError(f"{self._prefix}: {tokens.size} ids, but lengths add to {sizes.sum()}")
        if tokens.dtype != self._dtype:  # its own type holds nothing that does not fit
            if tokens.size and not self._fits(tokens):
                raise ValueError(
                    f"{self._prefix}: token ids {tokens.min()}..{tokens.max()} "
                    f"do not fit {self._dtype}"
                )
            tokens = tokens.astype(self._dtype)
        self._bin.write(np.ascontiguousarray(tokens).data)
        self._lengths.frombytes(sizes.tobytes())

    def pack(self, row_length: int, text_R: npt.ArrayLike) -> None:
        """Mark all tokens as rows of `row_length`, of which the first text_R [rows] are text.

        The tokens after them in a row are filler, which is never trained on.
        """
        texts = np.asarray(text_R, "<i4")
        self._rows = _ROWS.pack(_ROWS_MAGIC, row_length) + texts.tobytes()

    def _fits(self, tokens: npt.NDArray[Any]) -> bool:
        is_whole = tokens.dtype.kind in "iu"
        return is_whole and bool(
            self._limits.min <= tokens.min() <= tokens.max() <= self._limits.max
        )

    def finalize(self) -> None:
        """Make the pair visible. An older pair is replaced, never mixed with the new one."""
        self._idx.write(self._index())
        Path(f"{self._prefix}.idx").unlink(missing_ok=True)
        self._files.close()

    def _index(self) -> bytes:
        lengths = np.array(self._lengths, dtype="<i4")
        ends = np.cumsum(lengths, dtype="<i8") * self._dtype.itemsize
        starts = np.concatenate([np.zeros(1, "<i8"), ends])[:-1]
        boundaries = np.arange(len(lengths) + 1, dtype="<i8")
        header = _HEADER.pack(_MAGIC, _VERSION, self._code, len(lengths), len(boundaries))
        columns = lengths.tobytes() + starts.tobytes() + boundaries.tobytes()
        return header + columns + self._rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            self.finalize()
            return
        self._files.__exit__(kind, *rest)


class IndexedReader:
    """A PREFIX.bin/.idx pair, memory-mapped: opening one costs the same at any size.

    tokens: the stream of ids, [number of tokens], in the dtype of the file; row_length: of the rows
    that they are packed into, 0 where they are not; text_R: of each row the tokens before its
    filler, int32 [rows]; removed: documents taken out since, None mostly.
    Raises ConfigError, with the file and the fault, where the pair is missing, cut short or no
    index of tokens, or its borders do not follow each other: on opening up to 4,096 sequences are
    checked, in blocks, evenly spread, and all others when they are read.
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self._prefix = os.fspath(prefix)
        self._dtype, self._num_sequences, self._num_boundaries = self._read_header()
        num_tokens = self._bin_bytes() // self._dtype.itemsize
        actual = _size(f"{self._prefix}.bin")
        expected = num_tokens * self._dtype.itemsize
        if actual != expected:
            raise ConfigError(
                f"{self._prefix}.bin has {actual:,} bytes, its .idx says {expected:,}: "
                "the file was cut short or belongs to another .idx; write the pair again"
            )
        self.tokens: npt.NDArray[Any] = _map(f"{self._prefix}.bin", self._dtype, 0, num_tokens)
        self._check_borders()
        self.row_length, self.text_R = self._read_rows()
        if self.removed and np.any(self.removed.ranges > num_tokens):
            raise self._lies("documents were removed behind its end")

    @property
    def num_documents(self) -> int:
        return max(0, self._num_boundaries - 1)

    @property
    def document_offsets(self) -> npt.NDArray[np.int64]:
        """Where documents begin in `tokens`, and at last its length: int64 [documents + 1]."""
        starts, boundaries = self._starts(), self._boundaries()
        if np.any(boundaries < 0) or np.any(boundaries > self._num_sequences):
            raise self._lies("documents begin where no sequence does")
        offsets = np.append(starts // self._dtype.itemsize, len(self.tokens))
        found = np.asarray(offsets[boundaries], dtype=np.int64)
        is_within = not len(found) or 0 <= found[0] <= found[-1] <= len(self.tokens)
        if not is_within or np.any(np.diff(found) < 0):
            raise self._lies("documents do not follow each other")
        return found

    def document_of(self, token: int) -> int:
        """The document that the token at this place in `tokens` belongs to, by bisection."""
        starts, boundaries = self._starts(), self._boundaries()
        sequence = np.searchsorted(starts, token * self._dtype.itemsize, side="right") - 1
        return int(np.searchsorted(boundaries, sequence, side="right")) - 1

    def document_starts(self, first: int, last: int) -> list[int]:
        """Where documents begin in tokens[first:last], by bisection: nothing else is read."""
        size = self._dtype.itemsize
        starts, boundaries = self._starts(), self._boundaries()
        # numpy's own search would copy these columns, which lie at odd addresses.
        sequences = range(*(bisect_left(starts, place * size) for place in (first, last)))
        begin, end = (bisect_left(boundaries, n) for n in (sequences.start, sequences.stop))
        wanted = boundaries[begin:end]
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < self._num_sequences:
            raise self._lies("documents begin where no sequence does")
        found = [int(starts[n]) // size for n in wanted]
        if found != sorted(found) or (found and not first <= found[0] <= found[-1] < last):
            raise self._lies("documents do not follow each other")
        return found

    def text_of_rows(self, first: int, last: int) -> list[int]:
        """How many tokens are text in each of the rows [first, last), of tokens in rows."""
        texts: list[int] = self.text_R[first:last].tolist()
        for tokens in texts:
            if not 0 < tokens <= self.row_length:
                raise self._lies(f"a row of {self.row_length:,} tokens has {tokens:,} of text")
        return texts

    def _read_header(self) -> tuple[np.dtype[Any], int, int]:
        path = f"{self._prefix}.idx"
        actual = _size(path)
        with open(path, "rb") as file:
            header = file.read(_HEADER.size)
        if not header.startswith(_MAGIC):
            raise ConfigError(f"{path} is not a Megatron index: it begins with {header[:9]!r}")
        if len(header) < _HEADER.size:
            raise ConfigError(f"{path} has {actual:,} bytes, its header alone {_HEADER.size}")
        _, version, code, num_sequences, num_boundaries = _HEADER.unpack(header)
        if version != _VERSION:
            raise ConfigError(f"{path} is a Megatron index of version {version}; known: 1")
        if code not in _DTYPES:
            raise ConfigError(f"{path} stores no token ids: its dtype code is {code}")
        expected = _HEADER.size + 12 * num_sequences + 8 * num_boundaries
        self.removed = at_end(path)
        self._row_bytes = actual - expected - (self.removed.num_bytes if self.removed else 0)
        if self._row_bytes and not self._has_rows(expected):
            raise ConfigError(f"{path} has {actual:,} bytes, its header says {expected:,}")
        return _DTYPES[code], num_sequences, num_boundaries

    def _has_rows(self, at: int) -> bool:
        """Whether the bytes after the columns, from byte `at` on, describe packed rows."""
        if self._row_bytes < _ROWS.size:
            return False
        with open(f"{self._prefix}.idx", "rb") as file:
            file.seek(at)
            return file.read(len(_ROWS_MAGIC)) == _ROWS_MAGIC

    def _read_rows(self) -> tuple[int, npt.NDArray[np.int32]]:
        if not self._row_bytes:
            return 0, np.zeros(0, np.int32)
        columns = 12 * self._num_sequences + 8 * self._num_boundaries
        row_length = int(self._column("<i8", columns + len(_ROWS_MAGIC), 1)[0])
        text_R = self._column("<i4", columns + _ROWS.size, (self._row_bytes - _ROWS.size) // 4)
        is_whole = (self._row_bytes - _ROWS.size) % 4 == 0 and row_length > 0
        if not is_whole or len(text_R) * row_length != len(self.tokens):
            raise self._lies(f"its rows of {row_length:,} are not the tokens that there are")
        return row_length, text_R

    def _bin_bytes(self) -> int:
        """The size that the .bin must have: the beginning of its last sequence, and its length."""
        if not self._num_sequences:
            return 0
        last = self._num_sequences - 1
        length = self._column("<i4", 4 * last, 1)[0]
        start = self._column("<i8", 4 * self._num_sequences + 8 * last, 1)[0]
        return int(start) + int(length) * self._dtype.itemsize

    def _check_borders(self) -> None:
        """Each sequence begins where the one before it ends, and documents begin in their order."""
        count, size = self._num_sequences, self._dtype.itemsize
        starts, boundaries = self._starts(), self._boundaries()
        lengths = self._column("<i4", 0, count)
        if count and (starts[0] or lengths[-1] < 0):
            raise self._lies("the first sequence does not begin at 0, or the last has no length")
        some = _spread(count - 1)
        ends = starts[some] + lengths[some].astype(np.int64) * size
        if np.any(lengths[some] < 0) or np.any(ends != starts[some + 1]):
            raise self._lies("a sequence does not begin where the one before it ends")
        found = np.append(boundaries[_spread(self._num_boundaries)], boundaries[-1:])
        if np.any(np.diff(found) < 0) or (len(found) and (found[0] or found[-1] > count)):
            raise self._lies("documents do not follow each other")

    def _lies(self, how: str) -> ConfigError:
        return ConfigError(f"{self._prefix}.idx: damaged, {how}; write the pair again")

    def _starts(self) -> npt.NDArray[Any]:
        """Byte offsets of the sequences."""
        return self._column("<i8", 4 * self._num_sequences, self._num_sequences)

    def _boundaries(self) -> npt.NDArray[Any]:
        """Of each document, and of the end, the sequence that it begins with."""
        return self._column("<i8", 12 * self._num_sequences, self._num_boundaries)

    def _column(self, dtype: str, offset: int, count: int) -> npt.NDArray[Any]:
        return _map(f"{self._prefix}.idx", np.dtype(dtype), _HEADER.size + offset, count)


def _spread(count: int) -> npt.NDArray[np.int64]:
    """Some of 0 … count - 1, in order: all of a few, else blocks from the first to the last."""
    if count <= _BLOCKS * _BLOCK:
        return np.arange(max(0, count))
    starts = np.linspace(0, count - _BLOCK, _BLOCKS).astype(np.int64)
    return (starts[:, None] + np.arange(_BLOCK)).reshape(-1)


def _map(path: str, dtype: np.dtype[Any], offset: int, count: int) -> npt.NDArray[Any]:
    if count == 0:  # the operating system maps no empty range
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,))


def _size(path: str) -> int:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist; a source's path is the common beginning of its .bin and .idx"
        ) from None
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
        raise ConfigError(f"{path} is not a plain file")
    return found.st_size
