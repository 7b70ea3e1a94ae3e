"""How the rows of one forward pass are read, as one value that reaches every layer.

    sequences = Sequences(stretches=stretches, valid_BS=valid_BS)
    model(tokens_BS, sequences)

megatron-core hands its `packed_seq_params` to every layer, and again where a layer is computed a
second time in backward: so each micro-batch keeps its own, however a schedule mixes them.

Legend: B rows, S positions, D head size, T positions of this tensor rank in the order of its hidden
states.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from megatron_qwen3.model.linear import Products
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.parallel.mcore import PackedSeqParams


@dataclass
class Sequences(PackedSeqParams):
    """Without anything: each row is one text, all of it, read from its first position.

    stretches: the texts that rows are cut into, each read from its first position;
    positions_BS: int64, the place of each token in its text, where it is none of these;
    valid_BS: bool, False where a position is padding, which no router counts;
    caches: by layer number, what was read before, while text is generated;
    products: of a model that only generates, in place of its linears' own;
    rotary: cosines and sines of the positions, [2, S, B, 1, D], which the model adds.
    """

    qkv_format: str = "sbhd"
    stretches: Stretches | None = None
    positions_BS: Tensor | None = None
    valid_BS: Tensor | None = None
    caches: Mapping[int, Any] | None = None
    products: Products | None = None
    rotary: Tensor | None = None

    def rotated(self, tables: Any) -> Self:
        """With the rotation by `RotaryTables`, unless every row is read from its first place."""
        positions_BS = self.positions_BS
        if positions_BS is None and self.stretches:
            positions_BS = self.stretches.positions_BS()
        return self if positions_BS is None else replace(self, rotary=tables.at(positions_BS.t()))

    def valid_T(self, tensor_rank: int, tensor_ranks: int) -> Tensor | None:
        """Which positions are no padding, where `tensor_ranks` share those of a row."""
        if self.valid_BS is None:
            return None
        return self.valid_BS.t().chunk(tensor_ranks)[tensor_rank].flatten()
