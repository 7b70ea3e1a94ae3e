"""The stacking of SwiGLU's two matrices in one: all rows of the gate, then all of up.

    gate, up = cut(product_2F)                  # of an activation [..., 2F]
    sharded[key] = sharded_parts(described)     # of a weight [..., 2F, H], for checkpoints
    for shard, first in shards(entry): ...      # the checkpoint's tensors of any weight

SwiGLU is silu(gate x) * up x (arXiv 2002.05202, eq. 6); one product gives both. A tensor rank has
rows of each, stacked alike, so its rows are no range of the whole matrix: in a checkpoint, which
any number of tensor ranks reads, they are two shards. ORDER is for callers that know matrices by
name; they import no torch, so nothing here does before it is called.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_qwen3.parallel.mcore import ShardedTensor, ShardedTensorFactory

ORDER: Final = ("gate", "up")
_ROWS: Final = -2  # the axis of a weight [..., rows, columns] along which they are stacked


def cut(stacked: Tensor, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The two parts of a stacked tensor, as views."""
    gate, up = stacked.chunk(len(ORDER), dim=axis)
    return gate, up


def sharded_parts(whole: ShardedTensor) -> ShardedTensorFactory:
    """The two checkpoint tensors of this rank's weight.

    whole: the weight as if a tensor rank had one range of the rows; rank r of R in truth has range
    r of the gate's and range r of up's. Both are views of the weight.
    """
    import torch

    from megatron_qwen3.parallel.mcore import ShardedTensorFactory

    axis = len(whole.global_shape) + _ROWS
    rows, all_rows = whole.local_shape[_ROWS], whole.global_shape[axis]
    fragments = whole.axis_fragmentations
    doubled = fragments and (*fragments[:axis], 2 * fragments[axis], *fragments[axis + 1 :])

    def build(
        key: str, data: Tensor, replica_id: Any, flattened_range: slice | None
    ) -> list[ShardedTensor]:
        assert flattened_range is None
        parts = []
        for number, part in enumerate(cut(data.detach(), _ROWS)):
            first = (whole.global_offset[axis] + number * all_rows) // len(ORDER)
            offset = (*whole.global_offset[:axis], first, *whole.global_offset[axis + 1 :])
            parts.append(
                replace(
                    whole,
                    key=key,
                    data=part,
                    dtype=part.dtype,
                    local_shape=tuple(part.shape),
                    global_offset=offset,
                    axis_fragmentations=doubled,
                    replica_id=replica_id,
                )
            )
        return parts

    def merge(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, dim=_ROWS)

    assert rows % len(ORDER) == 0
    return ShardedTensorFactory(whole.key, whole.data, build, merge, whole.replica_id)


def shards(entry: ShardedTensor | ShardedTensorFactory) -> list[tuple[ShardedTensor, int]]:
    """The checkpoint tensors of a weight, each with its first row in the weight."""
    from megatron_qwen3.parallel.mcore import ShardedTensorFactory

    if not isinstance(entry, ShardedTensorFactory):
        return [(entry, 0)]
    parts = entry.build()
    rows = parts[0].local_shape[_ROWS]
    return [(part, number * rows) for number, part in enumerate(parts)]
