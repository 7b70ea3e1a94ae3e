"""Transformer Engine's layers: megatron-core's own, with our layout of rows and our balance.

    spec = block_spec(transformer, vp_stage)      # `specs.py` asks where model.kind is "te"

They are TransformerLayer, SelfAttention, and MLP or MoELayer with TEGroupedMLP, combined as in
megatron-core's specs for Transformer Engine: norms fused with the products after them, attention by
flash-attn or cuDNN, all experts of a rank in one call. Three parts are ours: a layer that takes
`Sequences`, attention that follows it, and a router that balances over the global batch. Weights
have the checkpoint names of layer.py's, and so the same initial values.

Legend: S positions, B rows, N query heads, G key/value groups, D head size, s positions of this
tensor rank, T = s·B, E experts, K experts per token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from megatron_qwen3.model import ops, router
from megatron_qwen3.model.attention import attention
from megatron_qwen3.model.sequences import Sequences
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.parallel.mcore import (
    AttnMaskType,
    PackedSeqParams,
    TEDotProductAttention,
    TransformerBlockSubmodules,
    TransformerConfig,
    TransformerLayer,
    get_gpt_decoder_block_spec,
)
from megatron_qwen3.settings import Config

# A norm fused with a product has other names in the module than in checkpoints.
_KEYS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}
_READ_BY_GRAPHS = ("hidden_states", "rotary_pos_emb")


def block_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    """The layers that this pipeline rank holds in model chunk `vp_stage`."""
    block = get_gpt_decoder_block_spec(config, use_transformer_engine=True, vp_stage=vp_stage)
    for layer in block.layer_specs:
        layer.module, parts = TELayer, layer.submodules
        parts.self_attention.submodules.core_attention = Attention
        parts.sharded_state_dict_keys_map = _KEYS
        if config.num_moe_experts:
            _submodules(parts.mlp).router = TERouter
    return block


def settings(config: Config, has_triton: bool) -> dict[str, object]:
    """Settings for megatron-core's configuration that these layers need."""
    fused: dict[str, object] = {"bias_activation_fusion": True, "bias_dropout_fusion": True}
    if config.model.num_experts:
        fused["moe_grouped_gemm"] = True
        fused["moe_permute_fusion"] = has_triton
        if config.parallel.recompute == "selective":
            fused["recompute_modules"] = ["moe"]
        if config.parallel.dispatch != "alltoall":
            fused["moe_token_dispatcher_type"] = "flex"
            fused["moe_flex_dispatcher_backend"] = config.parallel.dispatch
    return fused


def _submodules(spec: Any) -> Any:
    """The submodules of a part: a ModuleSpec in megatron-core 0.16, a partial in 0.19."""
    return spec.keywords["submodules"] if hasattr(spec, "keywords") else spec.submodules


class TELayer(TransformerLayer):
    """One layer, which TransformerBlock calls like layer.py's."""

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        with _made_for_training(config):
            super().__init__(config, *args, **kwargs)
        if config.num_moe_experts:
            for weight in self.mlp.experts.parameters():
                # As in layer.py's experts; megatron-core decides the first by EP > 1 alone,
                # and 0.16 forgets the second, without which the gradient norm leaves ranks out.
                weight.allreduce = False
                weight.tensor_model_parallel = True
        tensor = self.pg_collection.tp
        # Which part of a row's positions this tensor rank has, outside of its matrix products.
        self.place = (tensor.rank(), tensor.size()) if config.sequence_parallel else (0, 1)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: Tensor | None = None,
        packed_seq_params: Sequences | None = None,
        **_: Any,
    ) -> tuple:
        """[s, B, H] -> ([s, B, H], None): TransformerBlock's calling convention.

        megatron-core gets no rotary embedding: `Attention` rotates queries and keys itself.
        """
        sequences = _with_rotary(packed_seq_params, rotary_pos_emb)
        padding_Bs = self._padding(sequences)
        return super().forward(
            hidden_states,
            attention_mask=attention_mask,
            packed_seq_params=sequences,
            padding_mask=padding_Bs,
        )

    def _forward_attention(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: Tensor | None = None,
        packed_seq_params: Sequences | None = None,
        **others: Any,
    ) -> tuple:
        """The first half of `forward`, which overlap.experts calls on its own: it also passes the
        padding to the router, which comes right after it.

        ValueError for a mask, which causal attention would silently ignore.
        """
        if attention_mask is not None:
            raise ValueError("causal attention ignores masks: Sequences has the layout of rows")
        sequences = _with_rotary(packed_seq_params, rotary_pos_emb)
        if self.config.overlap_moe_expert_parallel_comm:
            padding_Bs = self._padding(sequences)
            self.mlp.router.padding_sB = None if padding_Bs is None else padding_Bs.t()
        return super()._forward_attention(hidden_states, packed_seq_params=sequences, **others)

    def get_layer_static_inputs(self, seq_length: int, micro_batch_size: int) -> dict[str, Tensor]:
        """The inputs of this layer's CUDA graph, besides rotary tables: [s, B, H].

        Without megatron-core's mask, which causal attention would not read.
        """
        shape = seq_length // self.place[1], micro_batch_size, self.config.hidden_size
        device, dtype = torch.cuda.current_device(), self.config.params_dtype
        hidden_sBH = torch.ones(shape, dtype=dtype, device=device, requires_grad=True)
        return {"hidden_states": hidden_sBH}

    def _get_te_cuda_graph_replay_args(self, *args: Any, **kwargs: Any) -> tuple:
        """The arguments that this layer's graph reads, of those that TransformerBlock gives."""
        read = {name: kwargs[name] for name in _READ_BY_GRAPHS if name in kwargs}
        made: tuple = super()._get_te_cuda_graph_replay_args(*args, **read)
        return made

    def _padding(self, sequences: Sequences) -> Tensor | None:
        """[B, s], True for padding, of this tensor rank's positions; None without padding."""
        if sequences.valid_BS is None:
            return None
        rank, ranks = self.place
        return ~sequences.valid_BS.chunk(ranks, dim=1)[rank]


def _with_rotary(sequences: Sequences | None, rotary: Tensor | None) -> Sequences:
    """The layout for attention, with the model's rotary tables unless it has its own."""
    sequences = sequences or Sequences()
    return replace(sequences, rotary=rotary) if sequences.rotary is None else sequences


@contextmanager
def _made_for_training(config: TransformerConfig) -> Iterator[None]:
    """Within, modules of Transformer Engine are made so that they add gradients to `main_grad`.

    They read this when they are made; megatron-core's output layer, which would need apex for it,
    is not made here. They are made on the device, since on the CPU megatron-core would draw each
    weight whole, or, where torch makes tensors without bytes, without values.
    """
    while_made = {
        "gradient_accumulation_fusion": True,
        "use_cpu_initialization": False,
        "init_model_with_meta_device": torch.empty(0).is_meta,
    }
    others = {name: getattr(config, name) for name in while_made}
    vars(config).update(while_made)
    try:
        yield
    finally:
        vars(config).update(others)


class Attention(TEDotProductAttention):
    """Rotates queries and keys, and attends as `Sequences` says.

    By Transformer Engine where rows are single texts or documents; by layer.py's attention where a
    cache holds earlier tokens, under Dual Chunk Attention, or where context ranks share rows and
    parallel.context_exchange is "own".
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # megatron-core 0.16 would drop it, and Transformer Engine would guess.
        self.kept_packed_seq_params.add("pad_between_seqs")

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        packed_seq_params: Sequences,
        **_: Any,
    ) -> Tensor:
        """[S, B, N · D] of normed queries [S, B, N, D], and keys and values [S, B, G, D]."""
        sequences = packed_seq_params
        assert attention_mask is None and sequences.rotary is not None
        key = ops.rotated(key, *sequences.rotary, by_head=False)
        if sequences.query_rotary is None:
            query = ops.rotated(query, *sequences.rotary, by_head=False)
        if sequences.caches:
            attend = sequences.caches[self.layer_number].attend
            return attend(query, key, value, sequences.reads, sequences.query_rotary)
        if sequences.share or sequences.query_rotary is not None:
            attend = sequences.share.attention if sequences.share else attention
            return attend(query, key, value, sequences.reads, sequences.query_rotary)
            # Along an axis of size 1, such as a rank's only head, `contiguous` keeps any stride,
            # but
            # Transformer Engine infers layouts from strides and would know none of these.
        value = value.reshape(-1).view(value.shape)
        documents = sequences.documents or sequences.stretches
        if documents is None:
            return super().forward(query, key, value, None, AttnMaskType.causal)
        return self._of_documents(query, key, value, documents)

    def _of_documents(
        self, query: Tensor, key: Tensor, value: Tensor, documents: Stretches
    ) -> Tensor:
        """All rows in one line, with the documents of `cu_seqlens`.

        Between context ranks the line is longer than a rank's part of it, and its documents end
        with padding, which no token of theirs attends to: so everything is declared text, by one
        tensor, and no kernel needs to skip anything.
        """
        bounds, longest = documents.cu_seqlens, max(documents.lengths)
        said = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=bounds,
            cu_seqlens_kv=bounds,
            cu_seqlens_q_padded=bounds,
            cu_seqlens_kv_padded=bounds,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )
        said.pad_between_seqs = False
        rows = query.shape[1]
        q, k, v = (x.transpose(0, 1).flatten(0, 1) for x in (query, key, value))
        mixed = super().forward(q, k, v, None, AttnMaskType.causal, packed_seq_params=said)
        return mixed.view(rows, -1, query.shape[2] * query.shape[3]).transpose(0, 1)


class TERouter(router.Router):
    """Chooses as our router does, and returns the choice in the form of megatron-core's
    dispatchers.

    padding_sB: for the next rows, where they come without it: see TELayer.
    """

    def __init__(self, config: TransformerConfig, **_: Any) -> None:
        super().__init__(config)
        self.padding_sB: Tensor | None = None

    def set_layer_number(self, layer_number: int) -> None:
        """megatron-core calls this on all routers."""

    def forward(self, hidden_sBH: Tensor, padding_sB: Tensor | None = None) -> tuple:
        """Probabilities, float32, and whether each expert is chosen, both [T, E]."""
        padding_sB = self.padding_sB if padding_sB is None else padding_sB
        valid_T = None if padding_sB is None else ~padding_sB.flatten()
        hidden_TH = hidden_sBH.flatten(0, 1)
        probs_TK, experts_TK = super().forward(hidden_TH, valid_T)
        zeros_TE = probs_TK.new_zeros(len(hidden_TH), self.num_experts)
        probs_TE = zeros_TE.scatter(1, experts_TK, probs_TK)
        map_TE = torch.zeros_like(zeros_TE, dtype=torch.bool).scatter_(1, experts_TK, True)
        return probs_TE, map_TE
