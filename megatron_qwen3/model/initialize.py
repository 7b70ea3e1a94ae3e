"""Fresh weights that depend only on the seed, not on the layout.

Each matrix is drawn whole from a generator seeded by its name, layer and expert, and every rank
keeps its shard. So one seed is one model, on one rank or on a thousand, and two layouts can be
compared without a checkpoint. Norm scales keep their ones.
"""

import hashlib
from dataclasses import replace

import torch
from torch import Tensor, nn

from megatron_qwen3.model.gate_and_up import shards
from megatron_qwen3.parallel.mcore import (
    ColumnParallelLinear,
    ProcessGroupCollection,
    RowParallelLinear,
    ShardedTensor,
    ShardedTensorFactory,
    VocabParallelEmbedding,
    is_float8tensor,
)

_SPLIT = (ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding)


@torch.no_grad()
def initialize(chunk: nn.Module, seed: int, std: float) -> None:
    """Fill every matrix of a model chunk with N(0, std²), as Qwen3's configurations say.

    Also marks the matrices that are split over tensor ranks, which megatron-core 0.16 does only
    where it initializes them itself; without the mark the gradient norm would count a shard as a
    copy.
    """
    for module in chunk.modules():
        if isinstance(module, _SPLIT) and module.weight is not None:
            module.weight.tensor_model_parallel = True
    if next(chunk.parameters()).is_meta:
        return  # no bytes: a dry run
    matrices = {id(p) for p in chunk.parameters() if p.ndim > 1}
    groups = ProcessGroupCollection.use_mpu_process_groups()
    metadata = {"dp_cp_group": groups.dp_cp}
    for entry in chunk.sharded_state_dict(metadata=metadata).values():
        if isinstance(entry, (ShardedTensor, ShardedTensorFactory)) and id(entry.data) in matrices:
            _fill_whole(entry, seed, std)


def _fill_whole(entry: ShardedTensor | ShardedTensorFactory, seed: int, std: float) -> None:
    """Draw a weight's shards. A weight in FP8 has one scale, or one per block: it is cast whole,
    and its float32 master starts from the values before the cast."""
    weight, wide = entry.data, entry.data
    if is_float8tensor(weight):
        wide = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    for shard, _ in shards(replace(entry, data=wide)):
        _fill(shard, seed, std)
    if wide is not weight:
        if hasattr(weight._quantizer, "amax"):  # left over from its construction
            weight._quantizer.amax.zero_()
        weight.copy_(wide)
        if hasattr(weight, "get_high_precision_init_val"):
            weight.get_high_precision_init_val().copy_(wide)


def _fill(shard: ShardedTensor, seed: int, std: float) -> None:
    """Draw the matrices that `shard` has parts of: one for each leading index."""
    target: Tensor = shard.data
    leading, (rows, columns) = shard.global_offset[:-2], shard.global_shape[-2:]
    row, column = shard.global_offset[-2:]
    for index, part in enumerate(target.view(-1, *target.shape[-2:])):
        # The last leading axis is the expert; a shard holds several in a row.
        place = (*leading[:-1], leading[-1] + index) if leading else ()
        whole = _draw((shard.key, place), (rows, columns), seed, std, target.device)
        part.copy_(whole[row : row + part.shape[0], column : column + part.shape[1]])


def _draw(
    name: tuple[str, tuple[int, ...]], shape: tuple[int, int], seed: int, std: float, device: object
) -> Tensor:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator(device=device).manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.empty(shape, device=device).normal_(0.0, std, generator=generator)
