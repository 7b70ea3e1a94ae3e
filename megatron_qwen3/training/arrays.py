"""A batch as numpy arrays, as readers build it before it becomes tensors. No torch here.

    arrays = Arrays(tokens_BS, labels_BS, weights_BS, starts=[[0, 5, 9], [0]])
    batch = TokenBatch.of_arrays(arrays)
    said, data = as_bytes(arrays)       # for another process; `said_of` reads the description

Without torch, a process that reads rows for a rank starts in a fraction of a second, without a GPU.

Legend: B sequences, S positions.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

BOUNDS = "bounds"
_ALIGNED_BYTES = 64  # each array begins at a multiple, which GPUs read fastest
_IN_BATCH = ("tokens_BS", "labels_BS", "weights_BS", "valid_BS")


@dataclass(frozen=True)
class Arrays:
    """The fields of TokenBatch as arrays; starts: starts of the documents in each row, an argument
    of `Stretches.of`."""

    tokens_BS: npt.NDArray[np.int64]
    labels_BS: npt.NDArray[np.int64]
    weights_BS: npt.NDArray[np.float32]
    starts: Sequence[Sequence[int]] | None = None
    valid_BS: npt.NDArray[np.bool_] | None = None
    extra: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


class Placed(NamedTuple):
    """An array within a buffer: its name as field or extra, type, shape and place."""

    name: str
    is_extra: bool
    dtype: str
    shape: tuple[int, ...]
    first_byte: int
    bytes: int


class Said(NamedTuple):
    """The description of a buffer; starts: those of Arrays, whose bounds are one more part."""

    parts: list[Placed]
    starts: list[list[int]] | None


def as_bytes(arrays: Arrays) -> tuple[Bytes, Bytes]:
    """(a description as JSON, all arrays one after another), both as bytes.

    With starts there is one more array, BOUNDS: int32, the content of `Stretches.cu_seqlens`.
    """
    parts: list[Placed] = []
    placed: list[tuple[int, npt.NDArray[Any]]] = []
    end = 0
    for name, is_extra, array in _named(arrays):
        first = -(-end // _ALIGNED_BYTES) * _ALIGNED_BYTES
        end = first + array.nbytes
        parts.append(Placed(name, is_extra, array.dtype.str, array.shape, first, array.nbytes))
        placed.append((first, array))
    data = np.zeros(end, np.uint8)
    for first, array in placed:
        data[first : first + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    starts = None if arrays.starts is None else [[*map(int, row)] for row in arrays.starts]
    return np.frombuffer(json.dumps([parts, starts]).encode(), np.uint8), data


def said_of(said: Bytes) -> Said:
    """Parse the description that `as_bytes` makes."""
    parts, starts = json.loads(said.tobytes())
    return Said([Placed(n, e, t, tuple(shape), *place) for n, e, t, shape, *place in parts], starts)


def _named(arrays: Arrays) -> Iterator[tuple[str, bool, npt.NDArray[Any]]]:
    for name in _IN_BATCH:
        if getattr(arrays, name) is not None:
            yield name, False, getattr(arrays, name)
    if arrays.starts is not None:
        rows, length = arrays.tokens_BS.shape
        bounds = [row * length + s for row, starts in enumerate(arrays.starts) for s in starts]
        yield BOUNDS, False, np.array([*bounds, rows * length], np.int32)
    for name, array in arrays.extra.items():
        yield name, True, array
