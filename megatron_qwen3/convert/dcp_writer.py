"""Writes a checkpoint of ours without a model or ranks; the inverse of `dcp.py`.

    writer = CheckpointWriter(folder)
    slot = writer.add(...)            # room for one chunk, at a known place in a file
    ... anyone fills the bytes at slot.data_start, in any order, from any thread ...
    writer.finish(config)             # completes the checkpoint

A chunk is at most 64 MiB, so that a rank need not read a whole tensor for a part of it.
"""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch

from megatron_qwen3 import config as settings
from megatron_qwen3.config import Config
from megatron_qwen3.convert.mapping import Index, Weight
from megatron_qwen3.storage import folder as folders
from megatron_qwen3.storage import manifest, torch_dist
from megatron_qwen3.storage.torch_dist import CHUNK_BYTES, ArchiveEntry, archive, dtype_name


@dataclass(frozen=True)
class Slot:
    """Room in a file for rows [row, row + rows) of each of the tensors `indices`, in order."""

    path: Path
    data_start: int
    indices: tuple[Index, ...]
    row: int
    rows: int


class CheckpointWriter:
    """Writes one .distcp file per layer, and one for tensors outside of layers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: list[ArchiveEntry] = []
        self._ends: dict[str, int] = {}

    def add_weight(self, weight: Weight, dtype: torch.dtype) -> Iterator[Slot]:
        """Make room for every layer and expert of one weight."""
        key, matrix = weight.names[0], weight.shape
        row_bytes = weight.columns * dtype.itemsize
        for indices, row, rows in _blocks(weight, row_bytes):
            axes = len(weight.leading)
            offsets = indices[0] + ((0,) if weight.vector else (row, 0))
            inner = matrix if weight.vector else (rows, weight.columns)
            leading = (1, len(indices))[:axes] if axes == 2 else (1,) * axes
            file = f"__{indices[0][0] if axes else 'model'}_0.distcp"
            start = self.add(file, key, weight.stacked_shape, dtype, offsets, (*leading, *inner))
            yield Slot(self.folder / file, start, indices, row, rows)

    def add(
        self,
        file: str,
        key: str,
        whole: tuple[int, ...],
        dtype: torch.dtype,
        offsets: tuple[int, ...],
        shape: tuple[int, ...],
    ) -> int:
        """Make room for one chunk of the tensor `key`; returns the offset of its data in `file`."""
        before, after = archive(shape, dtype)
        data_bytes = prod(shape) * dtype.itemsize
        start = self._ends.get(file, 0)
        with (self.folder / file).open("r+b" if start else "wb") as stream:
            stream.seek(start)
            stream.write(before)
            stream.seek(data_bytes, io.SEEK_CUR)
            stream.write(after)
        length = len(before) + data_bytes + len(after)
        self._note(ArchiveEntry(key, file, start, length, dtype_name(dtype), whole, offsets, shape))
        return start + len(before)

    def add_object(self, file: str, key: str, value: Any) -> None:
        """Store `value` by torch.save."""
        start = self._ends.get(file, 0)
        with (self.folder / file).open("ab") as stream:
            torch.save(value, stream)
            self._note(ArchiveEntry(key, file, start, stream.tell() - start))

    def finish(self, config: Config) -> None:
        """Write the other files of a checkpoint; files that callers added are sealed, too."""
        (self.folder / folders.SETTINGS_FILE).write_text(settings.to_toml(config), encoding="utf-8")
        torch_dist.finish(self.folder, self._rows)
        names = [str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file()]
        with ThreadPoolExecutor() as pool:
            seals = pool.map(lambda name: manifest.seal(self.folder / name), names)
            manifest.write(self.folder, dict(zip(names, seals, strict=True)))

    def _note(self, row: ArchiveEntry) -> None:
        self._rows.append(row)
        self._ends[row.file] = row.start + row.length


def _blocks(weight: Weight, row_bytes: int) -> Iterator[tuple[tuple[Index, ...], int, int]]:
    """(tensors, first row, rows) of each chunk: several experts, or one tensor, or a part of it."""
    tensor_bytes = weight.rows * row_bytes
    indices = list(weight.indices())
    if tensor_bytes > CHUNK_BYTES:
        step = ceil(weight.rows / ceil(tensor_bytes / CHUNK_BYTES))
        for index in indices:
            for row in range(0, weight.rows, step):
                yield (index,), row, min(step, weight.rows - row)
        return
    together = 1
    if len(weight.leading) == 2:
        fitting = range(1, max(1, CHUNK_BYTES // tensor_bytes) + 1)
        together = max(n for n in fitting if weight.leading[1] % n == 0)
    for first in range(0, len(indices), together):
        yield tuple(indices[first : first + together]), 0, weight.rows
