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
from megatron_qwen3.model.reads import Reads
from megatron_qwen3.model.rope import RotaryTables
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
    rotary, reads: cosines and sines of the positions, [2, S, B, 1, D], and which keys each query
    reads; the model adds both, `rotary` unless every row is read from its first position.
    """

    qkv_format: str = "sbhd"
    stretches: Stretches | None = None
    positions_BS: Tensor | None = None
    valid_BS: Tensor | None = None
    caches: Mapping[int, Any] | None = None
    products: Products | None = None
    rotary: Tensor | None = None
    reads: Reads | None = None

    def made_for(self, rows: int, length: int, tables: RotaryTables) -> Self:
        """With what attention needs to read `rows` rows of `length` positions."""
        positions_BS, reads = self.positions_BS, None
        if self.stretches:
            positions_BS = self.stretches.positions_BS()
            reads = Reads.of(rows, length, self.stretches)
        rotary = None if positions_BS is None else tables.at(positions_BS.t())
        return replace(
            self, max_seqlen_q=length, max_seqlen_kv=length, rotary=rotary, reads=reads
        )

    def valid_T(self, tensor_rank: int, tensor_ranks: int) -> Tensor | None:
        """Which positions are no padding, where `tensor_ranks` share those of a row."""
        if self.valid_BS is None:
            return None
        return self.valid_BS.t().chunk(tensor_ranks)[tensor_rank].flatten()
