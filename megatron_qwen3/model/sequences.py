"""The layout of rows in one forward pass, as one value that reaches every layer.

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

import torch
from torch import Tensor

from megatron_qwen3.model.context import ContextShare
from megatron_qwen3.model.dca import DualChunk, Tables
from megatron_qwen3.model.linear import Products
from megatron_qwen3.model.reads import Reads
from megatron_qwen3.model.rope import RotaryTables
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.parallel.mcore import PackedSeqParams


@dataclass
class Sequences(PackedSeqParams):
    """An empty one means: each row is one whole text, read from its first position.

    stretches: the texts in each row, each read from its first position;
    positions_BS: int64, the place of each token in its text, where it follows from neither;
    valid_BS: bool, False for padding, which no router counts;
    share: this context-parallel rank's part, where the pass computes only its places: stretches are
    then those of whole rows, of `length` places, and positions are given;
    documents: for Transformer Engine's attention, the documents of the line of all ranks, of which
    this pass has this rank's places as a row: document_share.py;
    caches: by layer number, keys and values of earlier tokens, during generation;
    products: of a model that only generates, in place of its linears' own;
    rotary, query_rotary, reads: added by the model: cosines and sines of the positions, [2, S, B,
    1, D], for Dual Chunk Attention of keys only, with three tables of queries; and the keys that
    each query reads.
    """

    qkv_format: str = "sbhd"
    stretches: Stretches | None = None
    positions_BS: Tensor | None = None
    valid_BS: Tensor | None = None
    share: ContextShare | None = None
    length: int = 0
    documents: Stretches | None = None
    caches: Mapping[int, Any] | None = None
    products: Products | None = None
    rotary: Tensor | None = None
    query_rotary: Tables | None = None
    reads: Reads | None = None

    def made_for(
        self, rows: int, length: int, tables: RotaryTables, dual: DualChunk | None = None
    ) -> Self:
        """This layout, complete for attention in `rows` rows of `length` positions on this rank."""
        positions_BS = self.positions_BS
        if self.stretches and not self.share:
            positions_BS = self.stretches.positions_BS()
        made = replace(self, max_seqlen_q=length, max_seqlen_kv=length)
        whole = self.length if self.share else length
        if self.stretches or self.share or dual and positions_BS is None:
            pieces = self.share and self.share.pieces(whole)
            made.reads = Reads.of(rows, whole, self.stretches, pieces, dual and dual.chunk)
        if dual:
            device = tables.inv_freq.device
            if positions_BS is None:
                positions_BS = torch.arange(length, device=device)[None]
            # Without reads it is one token of each row, at a position of its own.
            place_SB = positions_BS.t() % dual.chunk
            if made.reads:
                place_SB = torch.arange(min(whole, dual.chunk), device=device)[:, None]
            made.query_rotary = dual.query_tables(tables.at, place_SB)
            made.rotary = dual.key_table(tables.at, positions_BS.t())
        elif positions_BS is not None:
            made.rotary = tables.at(positions_BS.t())
        return made

    def valid_T(self, tensor_rank: int, tensor_ranks: int) -> Tensor | None:
        """False for padding, of this tensor rank's positions; None without padding."""
        if self.valid_BS is None:
            return None
        return self.valid_BS.t().chunk(tensor_ranks)[tensor_rank].flatten()
