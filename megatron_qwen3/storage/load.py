"""Fills tensors from a checkpoint that any layout wrote: `load(template, folder)`.

    loaded = load(model.weights(), folder)  # all ranks call it
    model.take_weights(loaded)

The template is megatron-core's description of this rank's weights; its tensors are filled in place.
Bytes are read here from the files directly into the tensors, where both have the same memory order:
neither megatron-core's loader nor torch's, which unpickle, is used on foreign checkpoints.
"""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_qwen3.parallel.mcore import ShardedObject, ShardedTensor, ShardedTensorFactory
from megatron_qwen3.settings import ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage import manifest
from megatron_qwen3.storage.boxes import meeting
from megatron_qwen3.storage.files import read_exactly
from megatron_qwen3.storage.pickles import Archive, layout
from megatron_qwen3.storage.table import (
    ITEM_BYTES,
    CheckpointTable,
    FileRange,
    Index,
    StoredChunk,
    StoredTensor,
    dtype_of,
    read_table,
)


def faults(checkpoint: Path, in_full: bool) -> list[str]:
    """Every rank's findings on a damaged checkpoint, on all ranks, which all call it.

    With `in_full` they read every file, each rank its share; else only sizes are checked.
    """
    ranks = dist.get_world_size()
    mine = manifest.faults(checkpoint, (dist.get_rank(), ranks) if in_full else None)
    found: list[list[str]] = [[] for _ in range(ranks)]
    dist.all_gather_object(found, mine)
    return list(dict.fromkeys(fault for faults in found for fault in faults))


def load(
    template: dict[str, Any],
    folder: Path,
    preferred: str = "",
    read: Callable[[Path], CheckpointTable] = read_table,
) -> dict[str, Any]:
    """The template with tensors, and plain objects, in place of their descriptions.

    preferred: a tensor whose key has this prefix is read instead, if the checkpoint has it.
    read: finds the place of each tensor, for a folder of another format.
    All ranks call it. ConfigError, on all of them, where the folder is no checkpoint or lacks a
    part of a tensor.
    """
    loaded: dict[str, Any] = {}
    error = ""
    try:
        table = read(folder)
        loaded = _filled(template, table, folder, preferred)
    except (ConfigError, OSError) as fault:
        error = str(fault)
    errors = [""] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    if faults := [fault for fault in errors if fault]:
        raise ConfigError(faults[0])
    return loaded


def _filled(entry: Any, table: CheckpointTable, folder: Path, preferred: str) -> Any:
    if isinstance(entry, dict):
        return {name: _filled(inner, table, folder, preferred) for name, inner in entry.items()}
    if isinstance(entry, list):
        return [_filled(inner, table, folder, preferred) for inner in entry]
    if isinstance(entry, ShardedTensorFactory):
        return entry.merge_fn(_filled(entry.build(), table, folder, preferred))
    if isinstance(entry, ShardedObject):
        place = table.objects.get(entry.unique_key)
        return entry.data if place is None else _object(place)
    tensors = table.tensors
    _fill(entry, tensors.get(preferred + entry.key) or tensors.get(entry.key), folder)
    return entry.data


def _object(place: FileRange) -> Any:
    """A module's extra state, which `read_table` found to be plain data."""
    try:
        archive = Archive(*place)
        value = _plain(archive.value, archive, place.path)
    except (ValueError, LookupError, RuntimeError) as error:
        raise ConfigError(f"{shown(place.path)}: damaged at byte {place.start}: {error}") from None
    return value[0] if type(value) is list and len(value) == 1 else value


def _plain(value: Any, archive: Archive, path: Path) -> Any:
    if type(value) in (list, tuple):
        return type(value)(_plain(item, archive, path) for item in value)
    if type(value) is dict:
        return {key: _plain(item, archive, path) for key, item in value.items()}
    found = layout(value)
    if found is None:
        return value
    start, size = archive.record(found.key)
    dtype = dtype_of(found)
    if dtype is None or prod(found.shape) * ITEM_BYTES[dtype] > size:
        raise ValueError("a tensor is larger than its bytes")
    buffer = torch.empty(size, dtype=torch.uint8)
    read_exactly(path, start, buffer.numpy())
    elements = buffer.view(getattr(torch, dtype))
    return torch.as_strided(elements, found.shape, found.stride, found.offset).clone()


@torch.no_grad()
def _fill(entry: ShardedTensor, stored: StoredTensor | None, folder: Path) -> None:
    """Read this rank's part of one tensor."""
    if stored is None:
        raise ConfigError(f"{shown(folder)}: {entry.key} is missing")
    shape, wanted = stored.shape, tuple(entry.global_shape)
    if shape != wanted and not (entry.allow_shape_mismatch and len(shape) == len(wanted)):
        raise ConfigError(f"{shown(folder)}: {entry.key} has shape {shape}, the model {wanted}")
    assert entry.data is not None and entry.flattened_range is None
    target = entry.data.detach()[(None,) * entry.prepend_axis_num]
    own = (tuple(entry.global_offset), tuple(target.shape))
    expected = meeting(own, ((0,) * len(shape), shape))
    if shape != wanted:
        target.zero_()  # rows of padding that the saved layout lacked, or had more of
    found = 0
    for chunk in stored.chunks:
        if part := meeting(own, (chunk.offsets, chunk.shape)):
            at = zip(part[0], own[0], part[1], strict=True)
            _copy(chunk, *part, target[tuple(slice(a - b, a - b + n) for a, b, n in at)])
            found += prod(part[1])
    if found != prod(expected[1] if expected else (0,)):
        raise ConfigError(f"{shown(folder)}: a part of {entry.key} is missing")


def _copy(chunk: StoredChunk, offsets: Index, shape: Index, out: Tensor) -> None:
    """Read a box of a chunk, from `offsets` of the whole tensor on, into `out` of that shape."""
    strides = tuple(prod(chunk.shape[axis + 1 :]) for axis in range(len(shape)))
    firsts = zip(offsets, chunk.offsets, strides, strict=True)
    first = sum((at - begin) * stride for at, begin, stride in firsts)
    span = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    dtype: torch.dtype = getattr(torch, chunk.dtype)
    place = chunk.data_start + first * dtype.itemsize
    is_alike = out.dtype == dtype and out.device.type == "cpu" and out.is_contiguous()
    if is_alike and span == prod(shape):
        read_exactly(chunk.path, place, out.view(-1).view(torch.uint8).numpy())
        return
    buffer = torch.empty(span * dtype.itemsize, dtype=torch.uint8)
    read_exactly(chunk.path, place, buffer.numpy())
    out.copy_(torch.as_strided(buffer.view(dtype), shape, strides))
