"""Writes torch's distributed checkpoint format (DCP), without torch's or megatron-core's writer.

    with ChunkFile(folder / "__0_0.distcp") as file:          # every rank, one file after the other
        file.add_tensor(ChunkPlace(key, whole, offsets), tensor)
        file.add_object("common", {...})
    finish(folder, file.rows + rows of the other files)       # one rank: the table, .metadata

A file is a row of small torch.save archives, one per chunk of a tensor; `.metadata` has the place
of each chunk. The bytes of an archive before and after its data depend only on shape and type
(`archive`), so the data are written from memory as they are, with their checksum taken on the way.
Checksums within the archives are left at zero, as torch.save itself offers: torch's readers do not
check them.
"""

import io
import json
import os
import pickle
import tempfile
import zlib
from collections.abc import Iterable
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_qwen3.storage.manifest import Seal

CHUNK_BYTES = 64 << 20  # so that a rank need not read a whole tensor for a part of it
_WRITE_BYTES = 1 << 24
_SYNC_BYTES = 1 << 28  # most unsynced bytes, so that the last sync is short
_BACKENDS = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


class ArchiveEntry(NamedTuple):
    """One archive: bytes [start, start + length) of `file`.

    A chunk of the tensor `key` of shape `whole`, with `shape` elements from `offsets` on and a
    type named as torch names it; an object where `dtype` is "".
    """

    key: str
    file: str
    start: int
    length: int
    dtype: str = ""
    whole: tuple[int, ...] = ()
    offsets: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()


class ChunkPlace(NamedTuple):
    """The place of a chunk: from `offsets` on in the tensor `key` of shape `whole`."""

    key: str
    whole: tuple[int, ...]
    offsets: tuple[int, ...]


class ChunkFile:
    """One .distcp file, written front to back; `rows` and `seal` describe it afterwards.

    On leaving the `with` block without an error the file is on the disk.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.rows, self.seal = path.name, list[ArchiveEntry](), Seal(0, 0)
        self._file, self._synced_bytes = path.open("wb", buffering=0), 0

    def add_tensor(self, place: ChunkPlace, tensor: Tensor) -> None:
        """Write one chunk; `tensor` is contiguous and on the CPU."""
        shape = tuple(tensor.shape)
        before, after = archive(shape, tensor.dtype)
        data = memoryview(tensor.reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""
        start = self.seal.bytes
        for part in (before, data, after):
            self._write(memoryview(part))
        length = self.seal.bytes - start
        dtype = dtype_name(tensor.dtype)
        self.rows.append(
            ArchiveEntry(
                place.key, self.name, start, length, dtype, place.whole, place.offsets, shape
            )
        )

    def add_object(self, key: str, value: Any) -> None:
        """Store plain data by torch.save."""
        self.add_packed(key, packed(value))

    def add_packed(self, key: str, data: bytes) -> None:
        """Store an object that `packed` has serialized."""
        start = self.seal.bytes
        self._write(memoryview(data))
        self.rows.append(ArchiveEntry(key, self.name, start, self.seal.bytes - start))

    def _write(self, data: memoryview) -> None:
        """Write in parts that stay in the cache between the checksum and the copy to the kernel."""
        for start in range(0, len(data), _WRITE_BYTES):
            part = data[start : start + _WRITE_BYTES]
            crc32 = zlib.crc32(part, self.seal.crc32)
            self.seal = Seal(self.seal.bytes + len(part), crc32)
            while part:
                part = part[self._file.write(part) :]
            if self.seal.bytes - self._synced_bytes >= _SYNC_BYTES:
                os.fdatasync(self._file.fileno())
                self._synced_bytes = self.seal.bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


def packed(value: Any) -> bytes:
    """Plain data serialized by torch.save, a copy of its present value."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def finish(folder: Path, rows: Iterable[ArchiveEntry]) -> list[str]:
    """Write the table and the other files of a checkpoint; returns their names."""
    entries: dict[str, Any] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for row in rows:
        index = MetadataIndex(row.key, torch.Size(row.offsets) if row.dtype else None)
        places[index] = _StorageInfo(row.file, row.start, row.length)
        if not row.dtype:
            entries[row.key] = BytesStorageMetadata()
            continue
        dtype = getattr(torch, row.dtype)
        entry = entries.setdefault(
            row.key, TensorStorageMetadata(TensorProperties(dtype), torch.Size(row.whole), [])
        )
        entry.chunks.append(ChunkStorageMetadata(torch.Size(row.offsets), torch.Size(row.shape)))
    torch.save({}, folder / "common.pt")  # megatron-core 0.16 needs it
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(entries, storage_data=places)))
    (folder / "metadata.json").write_text(json.dumps(_BACKENDS), encoding="utf-8")
    return ["common.pt", ".metadata", "metadata.json"]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def archive(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[bytes, bytes]:
    """The bytes that torch.save writes before and after the data of such a tensor."""
    with tempfile.TemporaryFile() as file:  # sparse: the data are never written
        with torch.serialization.skip_data():
            torch.save(torch.empty(shape, dtype=dtype), file)
        file.seek(0)
        start: int = torch._C.PyTorchFileReader(file).get_record_offset("data/0")
        file.seek(0)
        before = file.read(start)
        file.seek(start + prod(shape) * dtype.itemsize)
        return before, file.read()
