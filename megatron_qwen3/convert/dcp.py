"""Reads our checkpoints as files, without a model or ranks: torch's distributed format (DCP).

    checkpoint = Checkpoint(folder)            # any layout wrote it
    checkpoint.read_rows(weight, index, first_row, out)

`.metadata` has the place of each chunk of each tensor in the .distcp files; every chunk is a small
torch.save archive whose data are plain bytes. Rows are read straight from these bytes, so memory
never holds more than a batch of rows. `dcp_writer.py` is the other direction.

`storage/table.py` reads the table and checks it.
"""

import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch

from megatron_qwen3 import config as settings
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.convert.mapping import EXPERT_SHARE, Index, Weight, locate, weights
from megatron_qwen3.storage.files import read_exactly
from megatron_qwen3.storage.inside import inside
from megatron_qwen3.storage.table import StoredChunk, StoredTensor, read_table

FILES = ("config.toml", "metadata.json", ".metadata")
BATCH_BYTES = 256 << 10  # small enough to stay in a core's cache between a read and a write
_OTHER_STATE = ("optimizer.", "chained_")  # keys that are no weights


@dataclass(frozen=True)
class _Region:
    """The part of one matrix of ours that a chunk holds; `place` counts matrices in the chunk."""

    chunk: StoredChunk
    place: int
    row: int
    column: int
    rows: int
    columns: int


class Checkpoint:
    """The weights of a checkpoint that any layout wrote; each exists in its right shape.

    config: the settings it was saved with. ConfigError names tensors that are missing, unexpected
    or of another shape than these settings give.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in FILES:
            if not (folder / name).is_file():
                raise ConfigError(f"{folder}: no checkpoint of ours, it has no {name}")
            inside(folder, name)
        self.config: Config = settings.load([folder / "config.toml"])
        self.tensors = read_table(folder).tensors
        self.dtypes: dict[str, torch.dtype] = {}
        self.sources: dict[str, str] = {}  # the name in the table -> the name in this checkpoint
        self._regions: dict[tuple[str, Index], list[_Region]] = defaultdict(list)
        self._add_all(weights(self.config.model))

    def row_bytes(self, weight: Weight) -> int:
        return weight.columns * self.dtypes[weight.names[0]].itemsize

    def read_rows(self, weight: Weight, index: Index, first: int, out: np.ndarray) -> None:
        """Fill `out`, uint8 [rows, row_bytes], with rows of a tensor of ours from `first` on."""
        item = self.dtypes[weight.names[0]].itemsize
        for region in self._regions[weight.names[0], index]:
            _read_region(region, first, out, item)

    def _add_all(self, table: tuple[Weight, ...]) -> None:
        by_name = {name: weight for weight in table for name in weight.names}
        faults = []
        for key, stored in self.tensors.items():
            name, layer, expert = locate(key)
            if _is_other_state(key, name):
                continue
            if name not in by_name:
                faults.append(f"{key} is unexpected")
            else:
                faults += self._add(by_name[name], key, layer, expert, stored)
        faults += [fault for weight in table for fault in self._missing(weight)]
        if faults:
            raise ConfigError("\n".join(f"{self.folder}: {fault}" for fault in faults[:20]))

    def _add(
        self, weight: Weight, key: str, layer: int | None, expert: int | None, stored: StoredTensor
    ) -> Iterator[str]:
        named = (layer, expert)[: len(weight.leading)]
        stacked = [n for n, fixed in zip(weight.leading, named, strict=True) if fixed is None]
        expected = (*stacked, *weight.shape)
        if stored.shape != expected:
            yield f"{key} has shape {stored.shape}, the model {expected}"
            return
        name, dtype = weight.names[0], getattr(torch, stored.dtype)
        if self.dtypes.setdefault(name, dtype) != dtype:
            yield f"{key} is {dtype}, other layers {self.dtypes[name]}"
        self.sources.setdefault(name, key)
        for chunk in stored.chunks:
            self._add_chunk(weight, named, chunk)

    def _add_chunk(self, weight: Weight, named: tuple[int | None, ...], chunk: StoredChunk) -> None:
        """Record a chunk under every layer and expert that it holds a part of."""
        axes = iter(zip(chunk.offsets, chunk.shape, strict=True))
        leading = [[n] if n is not None else _span(*next(axes)) for n in named]
        matrix = list(axes)
        (row, rows), (column, columns) = [(0, 1)] * weight.vector + matrix
        for place, index in enumerate(_product(leading)):
            region = _Region(chunk, place, row, column, rows, columns)
            self._regions[weight.names[0], index].append(region)

    def _missing(self, weight: Weight) -> Iterator[str]:
        for index in weight.indices():
            regions = self._regions.get((weight.names[0], index), [])
            covered = sum(region.rows * region.columns for region in regions)
            if covered != prod(weight.shape):
                where = f" of layer {index[0]}" if index else ""
                where += f", expert {index[1]}," if len(index) > 1 else ""
                kind = "is missing" if covered < prod(weight.shape) else "is there twice"
                yield f"{weight.names[0]}{where} {kind}"


def _is_other_state(key: str, name: str) -> bool:
    return key.startswith(_OTHER_STATE) or name == EXPERT_SHARE


def _span(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def _product(leading: list[list[int]]) -> Iterator[Index]:
    if not leading:
        yield ()
        return
    for number in leading[0]:
        yield from ((number, *rest) for rest in _product(leading[1:]))


def _read_region(region: _Region, first: int, out: np.ndarray, item: int) -> None:
    """Copy a region's part of the rows of `out`, which start at row `first`."""
    low = max(first, region.row)
    high = min(first + len(out), region.row + region.rows)
    if low >= high:
        return
    width, column = region.columns * item, region.column * item
    start = region.chunk.data_start + (region.place * region.rows + low - region.row) * width
    target = out[low - first : high - first]
    if width == out.shape[1]:
        read_exactly(region.chunk.path, start, target)
    else:
        _read_into_columns(region.chunk.path, start, target[:, column : column + width])


def _read_into_columns(path: Path, start: int, out: np.ndarray) -> None:
    """Fill `out`, some columns of a wider array, from contiguous bytes of a file."""
    at_once = max(1, len(_scratch()) // out.shape[1])
    for row in range(0, len(out), at_once):
        target = out[row : row + at_once]
        part = _scratch()[: target.size].reshape(target.shape)
        read_exactly(path, start + row * out.shape[1], part)
        target[:] = part


_of_thread = threading.local()


def _scratch() -> np.ndarray:
    """A buffer that this thread reuses: fresh pages would cost more than the copy."""
    if not hasattr(_of_thread, "scratch"):
        _of_thread.scratch = np.empty(BATCH_BYTES, np.uint8)
    return _of_thread.scratch
