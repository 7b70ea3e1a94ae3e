"""Records documents that were taken out of a shard: their places, and the shard's marks.

Their tokens are written over by `<|endoftext|>`, which no run trains on, so that everything else
stays where it is (`removal.py`). The record for readers stands at the end of
PREFIX.idx: Megatron-LM reads the file as before, releases of this project that know no removals
refuse it.

    index += Removed(first_mark, mark, ranges).as_bytes()
    removed = at_end("data/tokens/web.idx")      # Removed, or None

Little-endian: first and last token of each of K ranges (i64 × 2K), the mark (`fingerprint.py`) of
the .bin as it was first written and as it is now (8 bytes each), K (u64), magic (8 bytes).
"""

import os
import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_qwen3.config import ConfigError

_MAGIC = b"QWENGONE"
_END = struct.Struct("<8s8sQ8s")
_RANGE_BYTES = 16


class Removed(NamedTuple):
    """first_mark: of the .bin as it was written, by which runs and curricula know it; mark: of its
    present bytes; ranges: int64 [K, 2], [first, last) tokens, ascending and apart."""

    first_mark: str
    mark: str
    ranges: npt.NDArray[np.int64]

    def as_bytes(self) -> bytes:
        marks = (bytes.fromhex(self.first_mark), bytes.fromhex(self.mark))
        end = _END.pack(*marks, len(self.ranges), _MAGIC)
        return self.ranges.astype("<i8").tobytes() + end

    @property
    def num_bytes(self) -> int:
        """Size of the record in the file."""
        return _RANGE_BYTES * len(self.ranges) + _END.size

    def within(self, first: int, last: int) -> list[tuple[int, int]]:
        """The parts of removed ranges that lie in tokens [first, last)."""
        if not len(self.ranges):
            return []
        begin = int(np.searchsorted(self.ranges[:, 1], first, side="right"))
        end = int(np.searchsorted(self.ranges[:, 0], last, side="left"))
        return [(max(a, first), min(b, last)) for a, b in self.ranges[begin:end].tolist()]


def at_end(path: str | os.PathLike[str]) -> Removed | None:
    """The record of an index, None where it has none. ConfigError where it is damaged; OSError."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        end = os.pread(file.fileno(), _END.size, max(0, size - _END.size))
        if len(end) < _END.size or not end.endswith(_MAGIC):
            return None
        first_mark, mark, count, _ = _END.unpack(end)
        start = size - _END.size - _RANGE_BYTES * count
        if start < 0:
            raise _lies(path)
        data = os.pread(file.fileno(), _RANGE_BYTES * count, start)
    flat = np.frombuffer(data, "<i8").astype(np.int64)
    if len(flat) != 2 * count or (count and flat[0] < 0) or np.any(np.diff(flat) < 0):
        raise _lies(path)
    return Removed(first_mark.hex(), mark.hex(), flat.reshape(-1, 2))


def _lies(path: str | os.PathLike[str]) -> ConfigError:
    return ConfigError(
        f"{os.fspath(path)}: damaged, removed documents do not follow each other; "
        "give back the file"
    )
