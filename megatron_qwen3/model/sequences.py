"""How the rows of one forward pass are read, as one value that reaches every layer.

    sequences = Sequences.of(valid_BS, tensor_rank, tensor_ranks)
    model(tokens_BS, position_ids, None, labels=labels_BS, packed_seq_params=sequences)

megatron-core hands its `packed_seq_params` to every layer, and again where a layer is computed a
second time in backward: so each micro-batch keeps its own, however a schedule mixes them.

Legend: B rows, S positions, T positions of this tensor rank in the order of its hidden states.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from megatron_qwen3.parallel.mcore import PackedSeqParams


@dataclass
class Sequences(PackedSeqParams):
    """valid_T: bool, False where a position is padding, which no router counts."""

    valid_T: Tensor | None = None

    @classmethod
    def of(cls, valid_BS: Tensor, tensor_rank: int, tensor_ranks: int) -> Self:
        """Rows that are each one text; `tensor_ranks` share the positions of a row."""
        length = valid_BS.shape[1]
        valid_SB = valid_BS.t().chunk(tensor_ranks)[tensor_rank]
        return cls(
            qkv_format="sbhd",
            max_seqlen_q=length,
            max_seqlen_kv=length,
            valid_T=valid_SB.flatten(),
        )
