"""The stacking and cutting of gate and up, held to megatron-core's own and to a whole matrix."""

import pytest
import torch
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory

from megatron_qwen3.model import gate_and_up
from megatron_qwen3.parallel.mcore import ShardedTensor

LAYER = (0, 2, 5)  # axis, place, count


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 3), (2, 3)])
def test_shards_of_a_dense_matrix_are_those_of_megatron_core(rank, ranks):
    weight = torch.nn.Parameter(torch.randn(8, 3))
    whole = ShardedTensor.from_rank_offsets(
        "w", weight, LAYER, (1, rank, ranks), replica_id=(0, 0, 7), prepend_axis_num=1
    )
    ours, theirs = gate_and_up.sharded_parts(whole), apply_swiglu_sharded_factory(whole, (LAYER,))
    assert ours.data is weight and ours.key == theirs.key == "w"
    for mine, other in zip(ours.build(), theirs.build(), strict=True):
        for name, value in vars(other).items():
            same = torch.equal if name == "data" else lambda a, b: a == b
            assert same(getattr(mine, name), value), name
    parts = [part.data for part in ours.build()]
    assert torch.equal(ours.merge_fn(parts), weight)


def test_ranks_shards_of_stacked_experts_make_up_all_gates_before_all_ups():
    experts, ranks, width = 4, 2, 6
    stored = torch.randn(experts, 2 * width, 5)  # as in a checkpoint: 6 rows of gates, 6 of ups
    gates, ups = stored[:, :width], stored[:, width:]
    seen = torch.zeros_like(stored)
    for expert_rank in range(2):
        for rank in range(ranks):
            mine, rows = slice(2 * expert_rank, 2 * expert_rank + 2), slice(3 * rank, 3 * rank + 3)
            weight = torch.cat([gates[mine, rows], ups[mine, rows]], dim=1)
            whole = ShardedTensor.from_rank_offsets(
                "w", weight, (0, expert_rank, 2), (1, rank, ranks)
            )
            for shard, first in gate_and_up.shards(gate_and_up.sharded_parts(whole)):
                at = zip(shard.global_offset, shard.local_shape, strict=True)
                seen[tuple(slice(start, start + size) for start, size in at)] = shard.data
                assert torch.equal(shard.data, weight[:, first : first + 3])
    assert torch.equal(seen, stored)
