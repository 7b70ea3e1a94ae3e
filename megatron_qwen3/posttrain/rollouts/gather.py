"""Gathers a training model's weights from any layout as whole Hugging Face tensors.

    weights = Gathered(model)                    # all ranks; finds who holds which part
    weights.table                                # [[name, shape, dtype], …], equal on all ranks
    for bucket in weights.buckets(1 << 30):      # all ranks take part to the end
        bucket.tensors                           # on the first rank {name: tensor}, else {}

Each bucket is a run of tensors in the order of the forward pass, of about the given bytes: it takes
memory for itself and for one other rank's part of it. Rows are moved by the table of names
(`convert/mapping.py`); nothing is computed. A tied model yields its lm_head, too, since vLLM keeps
a packed copy of it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_qwen3.convert.mapping import (
    EXPERT_SHARE,
    Index,
    Weight,
    in_order,
    locate,
    weights,
)
from megatron_qwen3.model.gate_and_up import shards
from megatron_qwen3.parallel.mcore import ShardedObject, is_main_replica
from megatron_qwen3.posttrain.rollouts.in_server.mq3_refit import Table, places, views
from megatron_qwen3.storage.torch_dist import dtype_name
from megatron_qwen3.training.model import Model

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Name = tuple[str, Index]  # of one of our tensors: its name in the table, its layer and expert


@dataclass(frozen=True)
class Region:
    """Rows and columns of one of our tensors that a rank holds; `number`: among its regions."""

    name: Name
    row: int
    column: int
    rows: int
    columns: int
    dtype: str
    rank: int
    number: int


@dataclass(frozen=True)
class Bucket:
    """Some tensors and their common buffer, uint8, which is empty except on the first rank."""

    table: Table
    flat: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        return dict(views(self.table, self.flat)) if len(self.flat) else {}


class Gathered:
    """Who holds which part of a model; each bucket reads the weights as they are then."""

    def __init__(self, model: Model) -> None:
        """All ranks call it. RuntimeError where no rank holds a part of the model."""
        self._model, self._rank = model, dist.get_rank()
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, [region for region, _ in self._mine()])
        self._regions: dict[Name, list[Region]] = {}
        for region in chain.from_iterable(every):
            self._regions.setdefault(region.name, []).append(region)
        self._units = list(in_order(model.config.model))
        for weight, index in self._units:
            held = sum(r.rows * r.columns for r in self._regions.get((weight.names[0], index), ()))
            if held != weight.rows * weight.columns:
                raise RuntimeError(f"the ranks hold {held} numbers of {weight.names[0]} {index}")

    @property
    def table(self) -> Table:
        return [row for weight, index in self._units for row in self._rows(weight, index)]

    def buckets(
        self, most_bytes: int, alive: Callable[[], None] = lambda: None
    ) -> Iterator[Bucket]:
        """Every tensor once, in order; a bucket exceeds `most_bytes` only for one larger tensor.

        alive: called before each, on every rank: a large model takes longer than the hang limit."""
        self._model.synchronize()
        mine = [tensor for _, tensor in self._mine()]
        for units in self.plan(most_bytes):
            alive()
            yield self._gathered(units, mine)

    def plan(self, most_bytes: int) -> list[list[tuple[Weight, Index]]]:
        """The buckets, as lists of our tensors."""
        planned: list[list[tuple[Weight, Index]]] = []
        room = 0
        for unit in self._units:
            size = places(self._rows(*unit))[1]
            if not planned or size > room:
                planned.append([])
                room = most_bytes
            planned[-1].append(unit)
            room -= size
        return planned

    def rows(self, units: list[tuple[Weight, Index]]) -> Table:
        """The table of a bucket."""
        return [row for weight, index in units for row in self._rows(weight, index)]

    def _rows(self, weight: Weight, index: Index) -> Table:
        """The Hugging Face tensors that one of ours becomes: [name, shape, dtype] each."""
        dtype = self._regions[weight.names[0], index][0].dtype
        found: Table = [
            [weight.part_name(part, index), list(weight.part_shape(part)), dtype]
            for part in range(len(weight.parts))
        ]
        if found[0][0] == EMBEDDING and self._model.config.model.tie_embeddings:
            found.append([HEAD, *found[0][1:]])
        return found

    def _mine(self) -> Iterator[tuple[Region, Tensor]]:
        """The parts that this rank sends, in a fixed order: of each part one rank sends it."""
        table = {n: w for w in weights(self._model.config.model) for n in w.names}
        entries = chain.from_iterable(c.values() for c in self._model.weights().values())
        number = 0
        for entry in entries:
            if isinstance(entry, ShardedObject) or entry.key == EXPERT_SHARE:
                continue
            for shard, _ in shards(entry):
                if not is_main_replica(shard.replica_id):
                    continue
                for region, tensor in _regions(shard, table, self._rank, number):
                    yield region, tensor
                    number += 1

    def _gathered(self, units: list[tuple[Weight, Index]], mine: list[Tensor]) -> Bucket:
        """One bucket: every other rank sends its part at once, in the order of the units."""
        table = self.rows(units)
        regions = [r for w, index in units for r in self._regions[w.names[0], index]]
        by_rank = {
            r: [x for x in regions if x.rank == r] for r in sorted({x.rank for x in regions})
        }
        if self._rank:
            if own := by_rank.get(self._rank):
                parts = [_bytes(mine[region.number]) for region in own]
                dist.send(torch.cat(parts), dst=0)
            return Bucket(table, torch.empty(0, dtype=torch.uint8))
        device = self._model.device
        bucket = Bucket(table, torch.empty(places(table)[1], dtype=torch.uint8, device=device))
        tensors, found = bucket.tensors, {(w.names[0], i): w for w, i in units}
        for rank, held in by_rank.items():
            given = (mine[r.number] for r in held) if not rank else _received(rank, held, device)
            for region, x in zip(held, given, strict=True):
                _put(found[region.name], region, x, tensors)
        if HEAD in tensors and EMBEDDING in tensors and self._model.config.model.tie_embeddings:
            tensors[HEAD].copy_(tensors[EMBEDDING])
        return bucket


def _regions(
    shard: Any, table: dict[str, Weight], rank: int, first: int
) -> Iterator[tuple[Region, Tensor]]:
    """The matrices that a checkpoint's tensor has on this rank, by layer and expert."""
    name, *named = locate(shard.key)
    weight = table[name]
    x = shard.data.detach()
    x = x.view((1,) * (len(shard.global_shape) - x.ndim) + tuple(x.shape))
    named = named[: len(weight.leading)]
    stacked = sum(number is None for number in named)
    offsets = iter(shard.global_offset[:stacked])
    lengths = iter(x.shape[:stacked])
    leading = [[n] if n is not None else _span(next(offsets), next(lengths)) for n in named]
    flat = x.reshape(-1, *x.shape[stacked:])
    place = (0, *shard.global_offset[stacked:]) if weight.vector else shard.global_offset[stacked:]
    for count, index in enumerate(product(*leading)):
        matrix = flat[count].view(-1, flat.shape[-1])
        region = Region(
            (weight.names[0], index),
            int(place[0]),
            int(place[1]),
            matrix.shape[0],
            matrix.shape[1],
            dtype_name(matrix.dtype),
            rank,
            first + count,
        )
        yield region, matrix


def _span(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(-1).view(torch.uint8)


def _received(rank: int, held: list[Region], device: torch.device) -> Iterator[Tensor]:
    """The regions of a bucket that a rank sends."""
    sizes = [r.rows * r.columns * getattr(torch, r.dtype).itemsize for r in held]
    flat = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
    dist.recv(flat, src=rank)
    for region, part in zip(held, torch.split(flat, sizes), strict=True):
        dtype = getattr(torch, region.dtype)
        if part.storage_offset() % dtype.itemsize:
            part = part.clone()
        yield part.view(dtype).view(region.rows, region.columns)


def _put(weight: Weight, region: Region, x: Tensor, tensors: dict[str, Tensor]) -> None:
    """Copy rows of our tensor into the Hugging Face tensors that they belong to."""
    columns = slice(region.column, region.column + region.columns)
    for piece in weight.pieces():
        low = max(region.row, piece.row)
        high = min(region.row + region.rows, piece.row + piece.rows)
        if low < high:
            target = tensors[weight.part_name(piece.part, region.name[1])]
            at = piece.part_row + low - piece.row
            rows = target.view(-1, weight.columns)[at : at + high - low]
            rows[:, columns].copy_(x[low - region.row : high - region.row])
