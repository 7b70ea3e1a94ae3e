"""Writes Hugging Face folders: `sink = Sink(folder, tensors)`, room for tensors in shards.

    sink.write(name, start, data)   # in any order, from any thread
    sink.close()

As all shapes are known beforehand, each shard's table is written first and then the bytes: shards
of 5 GB need no 5 GB of memory.
"""

import json
import os
import struct
from collections.abc import Iterable
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_qwen3.convert.hf import INDEX_FILE, NAMES, SINGLE_FILE, FileTensor

SHARD_BYTES = 5_000_000_000  # transformers' own limit


class Sink:
    """Shards with room for `tensors` (name, shape, dtype), in this order."""

    def __init__(
        self,
        folder: Path,
        tensors: Iterable[tuple[str, tuple[int, ...], torch.dtype]],
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.stored: dict[str, FileTensor] = {}
        self._stack = ExitStack()
        shards = _shards(list(tensors), shard_bytes)
        names = [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
        paths = [folder / name for name in (names if len(shards) > 1 else [SINGLE_FILE])]
        self._files = {path: self._stack.enter_context(path.open("wb", 0)) for path in paths}
        for path, shard in zip(paths, shards, strict=True):
            self._begin(path, shard)
        if len(shards) > 1:
            _write_index(folder, self.stored)

    def write(self, name: str, start: int, data: np.ndarray) -> None:
        """Put bytes into a tensor, from its byte `start`; any thread may."""
        stored = self.stored[name]
        write_exactly(self._files[stored.path].fileno(), stored.start + start, data)

    def close(self) -> None:
        self._stack.close()

    def _begin(self, path: Path, shard: list[tuple[str, tuple[int, ...], torch.dtype]]) -> None:
        table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end, places = 0, []
        for name, shape, dtype in shard:
            start, end = end, end + prod(shape) * dtype.itemsize
            offsets = [start, end]
            table[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
            places.append((name, start, shape, dtype))
        header = json.dumps(table, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        self._files[path].write(struct.pack("<Q", len(header)) + header)
        self._files[path].truncate(8 + len(header) + end)
        for name, start, shape, dtype in places:
            self.stored[name] = FileTensor(path, 8 + len(header) + start, shape, dtype)


def write_exactly(file: int, start: int, data: np.ndarray) -> None:
    """Put contiguous bytes into an open file from byte `start`."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(file, view, start)
        view, start = view[written:], start + written


def _shards(tensors: list[Any], limit: int) -> list[list[Any]]:
    shards, room = [[]], limit
    for name, shape, dtype in tensors:
        size = prod(shape) * dtype.itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append((name, shape, dtype))
        room -= size
    return shards


def _write_index(folder: Path, stored: dict[str, FileTensor]) -> None:
    total = sum(prod(s.shape) * s.dtype.itemsize for s in stored.values())
    listed = {name: s.path.name for name, s in stored.items()}
    index = {"metadata": {"total_size": total}, "weight_map": listed}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
