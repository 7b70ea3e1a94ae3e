"""One Qwen3 layer on megatron-core's parallel linears: norm, attention, norm, MLP or experts.

TransformerBlock builds it from the spec in `specs.py` and calls `Layer.forward`. The parallel
linears, their sequence parallelism and their checkpoints are megatron-core's; ours is the path
between them, which megatron-core runs unfused without Transformer Engine: one fused attention call
instead of a materialised mask, and the few element-wise steps of `ops.py`.

Shapes: S sequence (per tensor rank where sequence-parallel), B batch, H hidden, N query heads and
G key/value groups of this tensor rank, D head size.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from megatron_qwen3.model import gate_and_up, ops
from megatron_qwen3.model.attention import attention
from megatron_qwen3.model.heads import query_key_value
from megatron_qwen3.model.linear import Products, linear
from megatron_qwen3.model.sequences import Sequences
from megatron_qwen3.parallel.mcore import (
    BaseTransformerLayer,
    ColumnParallelLinear,
    MegatronModule,
    RowParallelLinear,
    TransformerConfig,
    build_module,
    get_transformer_layer_offset,
    tensor_parallel,
)


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467), float32 inside; scales start at one.

    megatron-core's own torch norm refuses sequence parallelism. Here the scale carries the mark
    by which megatron-core sums its gradient over the tensor ranks, each of which saw a part of
    the sequence.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any
    ) -> None:
        super().__init__()
        self.eps = eps
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=device)
        )
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


class HeadNorm(RMSNorm):
    """An RMS norm within each head. The fused path computes it; this module only gives the scale.

    It is a called module, since hooks on modules make sure that data ranks which share the update
    of a weight have all of it.
    """

    def forward(self) -> Tensor:  # type: ignore[override]
        return self.weight


class SelfAttention(MegatronModule):
    """Causal grouped-query attention with QK-Norm and RoPE.

    `linear_qkv` holds, per key/value group, its query heads, then the key, then the value head.
    """

    def __init__(self, config: TransformerConfig, tp_group: Any) -> None:
        super().__init__(config)
        self.head_dim = config.kv_channels
        self.groups = config.num_query_groups // tp_group.size()
        self.heads_per_group = config.num_attention_heads // config.num_query_groups
        heads_and_groups = config.num_attention_heads + 2 * config.num_query_groups
        self.linear_qkv = _column(config, heads_and_groups * self.head_dim, tp_group)
        width = config.num_attention_heads * self.head_dim
        self.linear_proj = _row(config, width, tp_group)
        self.q_layernorm = HeadNorm(config, self.head_dim, config.layernorm_epsilon)
        self.k_layernorm = HeadNorm(config, self.head_dim, config.layernorm_epsilon)

    def forward(
        self,
        hidden_SBH: Tensor,
        rotary: Tensor,
        sequences: Sequences,
        cache: Any = None,
    ) -> Tensor:
        """Attention within each row, or to the keys of `sequences.reads`.

        rotary: from RotaryTables. During generation `cache` is a generate.cache.KVCache, which does
        the attention, and `sequences.products` does the products.
        """
        products, query_rotary = sequences.products, sequences.query_rotary
        qkv = linear(self.linear_qkv, hidden_SBH, products)
        qkv = qkv.unflatten(2, (self.groups, self.heads_per_group + 2, self.head_dim))
        q_SBND, k_SBGD, v_SBGD = query_key_value(
            qkv,
            self.q_layernorm(),
            self.k_layernorm(),
            *rotary,
            eps=self.q_layernorm.eps,
            rotates_queries=query_rotary is None,
        )
        attend = attention
        if cache is not None:
            attend = cache.attend
        elif sequences.share:
            attend = sequences.share.attention
        mixed_SBW = attend(q_SBND, k_SBGD, v_SBGD, sequences.reads, query_rotary)
        return linear(self.linear_proj, mixed_SBW, products)


class DenseMLP(MegatronModule):
    """SwiGLU (arXiv 2002.05202), down(silu(gate) * up); `linear_fc1` is this rank's [gate; up]."""

    def __init__(self, config: TransformerConfig, pg_collection: Any) -> None:
        super().__init__(config)
        self.tp_group = tp_group = pg_collection.tp
        self.linear_fc1 = _column(config, 2 * config.ffn_hidden_size, tp_group)
        self.linear_fc2 = _row(config, config.ffn_hidden_size, tp_group)

    def forward(
        self, hidden_SBH: Tensor, valid_T: Tensor | None = None, products: Products | None = None
    ) -> Tensor:
        """valid_T: for experts; padding is computed like text."""
        gate_up = linear(self.linear_fc1, hidden_SBH, products)
        return linear(self.linear_fc2, ops.swiglu(gate_up), products)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Checkpoint shards; gate and up apart, so that any tensor size can read them."""
        sharded = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        key = f"{prefix}linear_fc1.weight"
        sharded[key] = gate_and_up.sharded_parts(sharded[key])
        return sharded


class Layer(MegatronModule, BaseTransformerLayer):
    """hidden + attention(norm(hidden)), then + mlp(norm(·)); `mlp` is dense or sparse by spec."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: Any,
        layer_number: int = 1,
        pg_collection: Any = None,
        vp_stage: int | None = None,
    ) -> None:
        super().__init__(config)
        offset = get_transformer_layer_offset(config, vp_stage, pg_collection.pp.rank())
        self.layer_number = offset + layer_number  # from 1, over the whole model
        self.input_layernorm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)
        self.self_attention = SelfAttention(config, pg_collection.tp)
        self.pre_mlp_layernorm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)
        self.mlp = build_module(submodules.mlp, config=config, pg_collection=pg_collection)
        tensor_group = pg_collection.tp
        # The part of a row's positions that this tensor rank has outside of matrix products.
        self.place = (
            (tensor_group.rank(), tensor_group.size()) if config.sequence_parallel else (0, 1)
        )
        self.recompute_mlp = config.recompute_granularity == "selective"

    def forward(
        self,
        hidden_states: Tensor,
        rotary_pos_emb: Tensor,
        packed_seq_params: Sequences | None = None,
        **_: Any,
    ) -> tuple:
        """[S, B, H] -> ([S, B, H], None): TransformerBlock's calling convention."""
        sequences = packed_seq_params or Sequences()
        rotary = rotary_pos_emb if sequences.rotary is None else sequences.rotary
        cache = sequences.caches[self.layer_number] if sequences.caches else None
        mlp = functools.partial(self._mlp, sequences=sequences)
        hidden_SBH = hidden_states
        hidden_SBH = hidden_SBH + self.self_attention(
            self.input_layernorm(hidden_SBH), rotary, sequences, cache
        )
        if self.recompute_mlp and self.training:
            update_SBH = tensor_parallel.checkpoint(mlp, False, hidden_SBH)
        else:
            update_SBH = mlp(hidden_SBH)
        return hidden_SBH + update_SBH, None

    def _mlp(self, hidden_SBH: Tensor, sequences: Sequences) -> Tensor:
        valid_T = sequences.valid_T(*self.place)
        return self.mlp(self.pre_mlp_layernorm(hidden_SBH), valid_T, sequences.products)


def _column(config: TransformerConfig, width: int, tp_group: Any) -> nn.Module:
    return ColumnParallelLinear(
        config.hidden_size,
        width,
        config=config,
        init_method=config.init_method,
        bias=False,
        gather_output=False,
        tp_group=tp_group,
    )


def _row(config: TransformerConfig, width: int, tp_group: Any) -> nn.Module:
    return RowParallelLinear(
        width,
        config.hidden_size,
        config=config,
        init_method=config.init_method,
        bias=False,
        input_is_parallel=True,
        skip_bias_add=True,
        tp_group=tp_group,
    )
