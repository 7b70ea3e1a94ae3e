"""Whole tensors out of the shards of all ranks, and how far two sets of them are apart.

On a rank: `local_shards(model, value_of)`; in the test: `assemble([shards of rank 0, ...])`. The
place of a shard is that of the model's own `sharded_state_dict`, as for a checkpoint.
"""

import dataclasses

from megatron_qwen3.parallel import mcore  # noqa: F401  isort: skip  (before megatron-core)
import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory


def local_shards(models, value_of):
    """[(name, place, whole shape, values)] of this rank's parameters and buffers.

    `value_of(tensor)` is the array to take: itself, its gradient, or None to leave it out.
    """
    shards = []
    for model in models:
        for entry in model.sharded_state_dict().values():
            if isinstance(entry, (ShardedTensor, ShardedTensorFactory)):
                value = value_of(entry.data)
                if value is not None:
                    shards += _cut(entry, value.detach())
    return shards


def _cut(entry, value):
    if isinstance(entry, ShardedTensor):
        parts = [dataclasses.replace(entry, data=value, dtype=value.dtype)]
    else:
        parts = dataclasses.replace(entry, data=value).build()
    return [(s.key, s.global_offset, s.global_shape, s.data.to("cpu", copy=True)) for s in parts]


def assemble(shards_of_ranks):
    """{name: whole tensor}; copies on several ranks must be equal to the bit, and none missing."""
    whole, filled = {}, {}
    for rank, shards in enumerate(shards_of_ranks):
        for name, offset, shape, values in shards:
            values = values.view((1,) * (len(shape) - values.ndim) + values.shape)
            place = tuple(slice(o, o + n) for o, n in zip(offset, values.shape, strict=True))
            if name not in whole:
                whole[name] = values.new_zeros(shape)
                filled[name] = torch.zeros(shape, dtype=torch.bool)
            again = filled[name][place]
            assert torch.equal(whole[name][place][again], values[again]), (
                f"rank {rank} holds another copy of {name} at {offset}"
            )
            whole[name][place] = values
            filled[name][place] = True
    missing = [name for name, mask in filled.items() if not mask.all()]
    assert not missing, f"no rank holds a part of {missing}"
    return whole


def difference(actual, expected, size=torch.Tensor.norm):
    """Of the worst parameter: (size(a - e) / size(e), its name), by layer and expert."""
    assert actual.keys() == expected.keys()
    return max(
        (_relative(actual[name][index], expected[name][index], size), f"{name}{list(index)}")
        for name in expected
        for index in _leading_indices(name, expected[name])
    )


def _relative(actual, expected, size):
    apart = size(actual - expected).item()
    return apart / max(size(expected).item(), 1e-30) if apart else 0.0


def _leading_indices(name, tensor):
    """Of layer and expert; the rest is a matrix, or a vector of norm scales or expert shares."""
    dimensions = 1 if "norm" in name or "share" in name else 2
    return [tuple(i) for i in torch.ones(tensor.shape[:-dimensions]).nonzero().tolist()]
