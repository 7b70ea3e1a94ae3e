"""How the rows of one forward pass are read, as one value that reaches every layer.

    sequences = Sequences.of(length, stretches, valid_BS, tensor_rank, tensor_ranks)
    model(tokens_BS, None, None, labels=labels_BS, packed_seq_params=sequences)

megatron-core hands its `packed_seq_params` to every layer, and again where a layer is computed a
second time in backward: so each micro-batch keeps its own, however a schedule mixes them.

Legend: B rows, S positions, T positions of this tensor rank in the order of its hidden states.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.parallel.mcore import PackedSeqParams


@dataclass
class Sequences(PackedSeqParams):
    """Both None: each row is one text, without padding.

    stretches: the texts that rows are cut into;
    valid_T: bool, False where a position is padding, which no router counts.
    """

    stretches: Stretches | None = None
    valid_T: Tensor | None = None

    @classmethod
    def of(
        cls,
        length: int,
        stretches: Stretches | None,
        valid_BS: Tensor | None,
        tensor_rank: int,
        tensor_ranks: int,
    ) -> Self:
        """Rows of `length` positions; `tensor_ranks` share the positions of a row."""
        valid_T = None
        if valid_BS is not None:
            valid_T = valid_BS.t().chunk(tensor_ranks)[tensor_rank].flatten()
        return cls(
            qkv_format="sbhd",
            max_seqlen_q=length,
            max_seqlen_kv=length,
            stretches=stretches,
            valid_T=valid_T,
        )
