"""Weights of kind "te", made of real modules, are those of kind "torch" in every checkpoint.

For all sizes and kinds of layout: keys, shapes, types, and which piece of each tensor a rank has
and writes. On torch's meta device, with process groups in which the other ranks are not there.
"""

from collections import Counter
from typing import NamedTuple

import pytest
import torch
from transformer_engine.pytorch.module.base import TransformerEngineBaseModule

from megatron_qwen3.config import load
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.presets import PRESETS
from megatron_qwen3.training.dry_run import _pretending_to_be
from megatron_qwen3.training.model import Model

SIZES = [name for name in PRESETS if not name.startswith("tiny")]
EXPERTS = ".mlp.experts.experts."


class Ranks(NamedTuple):
    """A layout, and those of its ranks that are looked at."""

    world: int
    looked_at: tuple[int, ...]
    settings: tuple[str, ...] = ()


DENSE = {
    "one": Ranks(1, (0,)),
    "tp4": Ranks(8, (5,), ("tensor=4",)),
    "tp2-whole-rows": Ranks(2, (1,), ("tensor=2", "sequence=false")),
    "tp2-pp4": Ranks(16, (1, 6, 15), ("tensor=2", "pipeline=4")),
    "pp2-vpp2": Ranks(4, (0, 3), ("pipeline=2", "virtual_pipeline=2")),
}
SPARSE = {
    "one": Ranks(1, (0,)),
    "tp2": Ranks(2, (1,), ("tensor=2",)),
    "ep8": Ranks(8, (3,), ("expert=8",)),
    "tp2-ep4-etp2": Ranks(8, (7,), ("tensor=2", "expert=4", "expert_tensor=2")),
    "tp4-ep8-etp1-pp2": Ranks(16, (2, 13), ("tensor=4", "expert=8", "pipeline=2")),
    "pp2-vpp2-ep2": Ranks(4, (0, 3), ("pipeline=2", "virtual_pipeline=2", "expert=2")),
}
CASES = [
    pytest.param(size, ranks, id=f"{size}-{name}")
    for size in SIZES
    for name, ranks in (SPARSE if PRESETS[size]["num_experts"] else DENSE).items()
]


class Shard(NamedTuple):
    """A piece of a tensor: from which place on, how large, and which of its equals writes it."""

    shape: tuple[int, ...]
    first: tuple[int, ...]
    size: tuple[int, ...]
    dtype: torch.dtype
    replica: object


class Weights(NamedTuple):
    shards: dict[str, Counter]
    states: set[str]
    modules: int


@pytest.mark.parametrize("size, ranks", CASES)
def test_checkpoints_have_the_same_tensors_in_the_same_pieces(size, ranks):
    for rank in ranks.looked_at:
        ours, theirs = (weights(kind, size, ranks, rank) for kind in ("torch", "te"))
        assert theirs.modules and not ours.modules
        assert ours.shards.keys() == theirs.shards.keys()
        for key, shards in ours.shards.items():
            assert shards == theirs.shards[key], key
        # A module of Transformer Engine keeps its scales, which torch's does not have.
        assert ours.states <= theirs.states
        assert all("._extra_state" in key for key in theirs.states)


def weights(kind, size, ranks, rank):
    asked = [f"model.preset={size}", f"model.kind={kind}", "train.steps=1"]
    asked += [f"train.global_batch={4 * ranks.world}"]
    asked += [f"parallel.{setting}" for setting in ranks.settings]
    config = load([], asked)
    layout = Layout.of(config, ranks.world)
    with _pretending_to_be(rank, config, layout):
        model = Model(config, layout)
        assert all(p.is_meta for chunk in model.chunks for p in chunk.parameters())
        modules = [module for chunk in model.chunks for module in chunk.modules()]
        return Weights(
            *described(model.weights()),
            sum(isinstance(module, TransformerEngineBaseModule) for module in modules),
        )


def described(tree):
    """Shards by key, each expert's apart; and the keys of all that is no tensor."""
    shards, states = {}, set()
    for entry in leaves(tree):
        if hasattr(entry, "unique_key"):
            states.add(entry.unique_key)
            continue
        found = shards.setdefault(entry.key, Counter())
        size = (1,) * entry.prepend_axis_num + tuple(entry.local_shape)
        of_experts = range(size[1]) if EXPERTS in entry.key else [None]
        for expert in of_experts:
            first, own = tuple(entry.global_offset), size
            if expert is not None:
                first = (first[0], first[1] + expert, *first[2:])
                own = (size[0], 1, *size[2:])
            shape = tuple(entry.global_shape)
            found[Shard(shape, first, own, entry.dtype, str(entry.replica_id))] += 1
    return shards, states


def leaves(tree):
    """The parts of a description, factories of several shards by their products."""
    if isinstance(tree, dict):
        tree = tree.values()
    elif hasattr(tree, "build"):
        tree = [tree.build()]
    elif not isinstance(tree, (list, tuple)):
        yield tree
        return
    for branch in tree:
        yield from leaves(branch)
