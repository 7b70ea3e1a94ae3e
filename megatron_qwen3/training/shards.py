"""The parts of model and optimizer that this rank saves, as chunks of the checkpoint's tensors.

    for part in owned(engine): ...                     # write part.tensor at part.place
    for key, value in objects(engine).items(): ...     # extra state, made anew at each call
    template = optimizer_template(engine)              # `storage/load.py` reads into these in place

The distributed optimizer (ZeRO-1) keeps a range of each flattened parameter. megatron-core writes
it either by gathering the whole state on every data rank, or in a form that only the same layout
can read. Here a range is split into the few rectangles of the parameter that it covers, and torch's
format stores rectangles: every rank writes its own part, weights as well, nothing is sent, and any
layout can read it.
"""

from collections.abc import Iterator
from itertools import chain
from math import prod
from typing import Any, NamedTuple

from torch import Tensor

from megatron_qwen3.model.gate_and_up import shards
from megatron_qwen3.parallel.mcore import (
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
    is_float8tensor,
    is_main_replica,
)
from megatron_qwen3.storage.torch_dist import CHUNK_BYTES, ChunkPlace
from megatron_qwen3.training import optim
from megatron_qwen3.training.engine import Engine

Index = tuple[int, ...]


class TensorChunk(NamedTuple):
    """A chunk of a checkpoint's tensor; `tensor` is a view of the trained tensor."""

    place: ChunkPlace
    tensor: Tensor
    replica: Any = 0  # megatron-core's replica id: zeros only on the rank that saves it


def owned(engine: Engine) -> list[TensorChunk]:
    """The parts that this rank saves: each part of the checkpoint has one owner."""
    states = {id(s.param): s for s in optim.owned_states(engine.optimizer)}
    sharded = engine.config.optim.distributed
    parts: list[TensorChunk] = []
    for entry in chain.from_iterable(chunk.values() for chunk in engine.model.weights().values()):
        if isinstance(entry, ShardedObject):
            continue
        if entry.data.requires_grad and sharded:
            if state := states.get(id(entry.data)):
                parts += [p for p in _parts_of_range(entry, state) if not any(p.replica[:2])]
        else:
            state = states.get(id(entry.data)) or optim.OwnedState(entry.data, 0, {})
            parts += [p for p in _parts_of_range(entry, state) if is_main_replica(p.replica)]
    return list(chain.from_iterable(map(_split, parts)))


def objects(engine: Engine) -> dict[str, list[object]]:
    """By key, the modules' present extra state that this rank saves.

    Modules of Transformer Engine without such state return a tensor without elements, one for each
    expert: nothing is saved for them.
    """
    entries = chain.from_iterable(chunk.values() for chunk in engine.model.weights().values())
    return {
        entry.unique_key: [entry.data]
        for entry in entries
        if isinstance(entry, ShardedObject)
        and is_main_replica(entry.replica_id)
        and not (isinstance(entry.data, Tensor) and not entry.data.numel())
    }


def optimizer_template(engine: Engine) -> dict[str, ShardedTensor]:
    """The optimizer state that this rank needs; loading fills the state in place."""
    return _template(engine, _OPTIMIZER, without="")


def master_template(engine: Engine) -> dict[str, ShardedTensor]:
    """The float32 weights that this rank updates, by the weights' own keys; loading fills them.

    {} where they are the model's own.
    """
    return _template(engine, MASTER, without=MASTER)


def _template(engine: Engine, beginning: str, without: str) -> dict[str, ShardedTensor]:
    """The parts of the optimizer's state with this beginning of the key, less `without`."""
    states = {id(s.param): s for s in optim.owned_states(engine.optimizer)}
    parts = [
        part
        for chunk in engine.model.weights().values()
        for entry in chunk.values()
        if not isinstance(entry, ShardedObject) and id(entry.data) in states
        for part in _parts_of_range(entry, states[id(entry.data)])
        if part.place.key.startswith(beginning)
    ]
    return {
        str(number): ShardedTensor(
            key=part.place.key.removeprefix(without),
            data=part.tensor,
            dtype=part.tensor.dtype,
            local_shape=tuple(part.tensor.shape),
            global_shape=part.place.whole,
            global_offset=part.place.offsets,
            axis_fragmentations=None,
            replica_id=part.replica,
        )
        for number, part in enumerate(parts)
    }


_OPTIMIZER = "optimizer.state."
MASTER = f"{_OPTIMIZER}fp32_param."  # prefix of a weight's key


def _parts_of_range(
    entry: ShardedTensor | ShardedTensorFactory, state: optim.OwnedState
) -> Iterator[TensorChunk]:
    """The parts of a weight, and of its optimizer state, that a range of it covers."""
    param = state.param.detach()
    stop = state.start + (state.numel if state.tensors else param.numel())
    if is_float8tensor(param):  # save bf16, as a bf16 run does
        flat = {"": state.tensors["fp32_param"].view(-1).to(param.dtype)}
    else:
        flat = {"": param.view(-1)[state.start : stop]}
    flat |= {f"{_OPTIMIZER}{name}.": tensor.view(-1) for name, tensor in state.tensors.items()}
    position = 0
    for low, size in rectangles(tuple(param.shape), state.start, stop):
        end = position + prod(size)
        for prefix, values in flat.items():
            for shard, row in shards(entry):
                first = tuple(row if axis == param.ndim - 2 else 0 for axis in range(param.ndim))
                yield from _overlap(prefix, shard, first, low, values[position:end].view(size))
        position = end


def _overlap(
    prefix: str, shard: ShardedTensor, first: Index, low: Index, values: Tensor
) -> Iterator[TensorChunk]:
    """The part of `values`, which begin at `low` in the parameter, within a shard at `first`."""
    begin = tuple(map(max, first, low))
    ends = zip(first, shard.local_shape, low, values.shape, strict=True)
    end = tuple(min(f + length, at + have) for f, length, at, have in ends)
    if any(b >= e for b, e in zip(begin, end, strict=True)):
        return
    within = zip(begin, end, low, strict=True)
    view = values[tuple(slice(b - at, e - at) for b, e, at in within)]
    leading = shard.prepend_axis_num
    inner = zip(shard.global_offset[leading:], begin, first, strict=True)
    offsets = (*shard.global_offset[:leading], *(o + b - f for o, b, f in inner))
    place = ChunkPlace(prefix + shard.key, tuple(shard.global_shape), offsets)
    yield TensorChunk(place, view.reshape((1,) * leading + tuple(view.shape)), shard.replica_id)


def rectangles(shape: Index, start: int, stop: int) -> Iterator[tuple[Index, Index]]:
    """(first index, shape) of the rectangles, in order, that cover elements [start, stop).

    Elements are counted in row-major order; A axes give at most 2·A - 1 rectangles.
    """
    if start >= stop:
        return
    if len(shape) == 1:
        yield (start,), (stop - start,)
        return
    row_size = prod(shape[1:])
    row, end_row = start // row_size, stop // row_size
    if row == end_row or start % row_size:
        stop_here = min(stop, (row + 1) * row_size)
        inner = rectangles(shape[1:], start - row * row_size, stop_here - row * row_size)
        yield from (((row, *low), (1, *size)) for low, size in inner)
        yield from rectangles(shape, stop_here, stop)
        return
    yield (row, *(0 for _ in shape[1:])), (end_row - row, *shape[1:])
    yield from rectangles(shape, end_row * row_size, stop)


def _split(part: TensorChunk) -> Iterator[TensorChunk]:
    """Chunks small enough to be read when only a part of one is needed."""
    (key, whole, offsets), tensor, replica = part
    if tensor.nbytes <= CHUNK_BYTES:
        yield part
        return
    axis = next(axis for axis, length in enumerate(tensor.shape) if length > 1)
    step = max(1, tensor.shape[axis] * CHUNK_BYTES // tensor.nbytes)
    for first in range(0, tensor.shape[axis], step):
        piece = tensor.narrow(axis, first, min(step, tensor.shape[axis] - first))
        moved = (*offsets[:axis], offsets[axis] + first, *offsets[axis + 1 :])
        yield from _split(TensorChunk(ChunkPlace(key, whole, moved), piece, replica))
