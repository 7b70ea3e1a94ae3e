"""A Qwen3 as megatron-core's GPTModel: `chunks = build(config, layout)`.

One model chunk per virtual pipeline stage of this rank. megatron-core 0.19 recommends its
HybridModel for new work; GPTModel is what all supported releases have, and the choice stands
only here.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_qwen3.config import Config
from megatron_qwen3.model import specs
from megatron_qwen3.model.initialize import initialize
from megatron_qwen3.model.log_probs import vocab_parallel_log_probs
from megatron_qwen3.model.rope import RotaryTables
from megatron_qwen3.model.sequences import Sequences
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.parallel.mcore import (
    GPTModel,
    ProcessGroupCollection,
    TransformerConfig,
    parallel_state,
)


class Qwen3(GPTModel):
    """GPTModel that answers labels with log-probabilities instead of a loss.

    Without labels the last stage returns this tensor rank's part of the logits, [B, S, V/tp], or,
    while text is generated and `last_position_only` is set, of the last position alone.
    """

    last_position_only = False

    def forward(
        self,
        input_ids: Tensor,
        position_ids: None,
        *args: Any,
        stretches: Stretches | None = None,
        valid_BS: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """stretches keep texts apart that share a row; None is one text per row.

        valid_BS, bool, is False where a position is padding; None is without padding. Positions
        count from the start of a stretch: GPTModel's `position_ids` are not used.
        """
        length = input_ids.shape[1]
        kwargs["packed_seq_params"] = self._sequences(length, stretches, valid_BS)
        if stretches is None:
            return super().forward(input_ids, None, *args, **kwargs)
        self.rotary_pos_emb.given = self.rotary_pos_emb.at(stretches.positions_BS().t())
        try:
            return super().forward(input_ids, None, *args, **kwargs)
        finally:
            self.rotary_pos_emb.given = None

    def _sequences(
        self, length: int, stretches: Stretches | None, valid_BS: Tensor | None
    ) -> Sequences | None:
        if stretches is None and valid_BS is None:
            return None
        group = self.pg_collection.tp
        rank, size = (group.rank(), group.size()) if self.config.sequence_parallel else (0, 1)
        return Sequences.of(length, stretches, valid_BS, rank, size)

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.post_process and self.last_position_only:
            hidden_states = hidden_states[-1:]
        return super()._postprocess(hidden_states, *args, **kwargs)

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Float32 [2, B, S]: log p(label) and the log of the softmax's denominator."""
        log_probs_2SB = vocab_parallel_log_probs(
            logits, labels.transpose(0, 1), self.pg_collection.tp
        )
        return log_probs_2SB.transpose(1, 2)


@contextmanager
def last_position_only(models: list[Qwen3]) -> Iterator[None]:
    """Models that, without labels, compute the logits of the last position alone."""
    for model in models:
        model.last_position_only = True
    try:
        yield
    finally:
        for model in models:
            model.last_position_only = False


def build(config: Config, layout: Layout) -> list[Qwen3]:
    """This rank's model chunks with fresh weights, which do not depend on the layout."""
    transformer = transformer_config(config, layout)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    chunks = [_chunk(config, transformer, groups, index) for index in range(layout.virtual)]
    for chunk in chunks:
        initialize(chunk, config.run.seed, config.model.init_std)
    return chunks


def _chunk(
    config: Config, transformer: TransformerConfig, groups: ProcessGroupCollection, index: int
) -> Qwen3:
    virtual = transformer.virtual_pipeline_model_parallel_size
    stage = index if virtual else None
    chunk = Qwen3(
        transformer,
        specs.block_spec(transformer, stage),
        vocab_size=config.model.vocab_size,
        max_sequence_length=config.data.sequence_length,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
        share_embeddings_and_output_weights=config.model.tie_embeddings,
        position_embedding_type="rope",
        rotary_base=config.model.rope_theta,
        pg_collection=groups,
        vp_stage=stage,
    )
    chunk.rotary_pos_emb = RotaryTables(config.model.head_dim, config.model.rope_theta)
    return chunk.to(torch.cuda.current_device())


def transformer_config(config: Config, layout: Layout) -> TransformerConfig:
    """megatron-core's configuration of the model in this layout."""
    model, bf16 = config.model, config.train.precision == "bf16"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on fusions that need Transformer Engine or apex
        return TransformerConfig(
            num_layers=model.num_layers,
            hidden_size=model.hidden_size,
            ffn_hidden_size=model.ffn_hidden_size,
            num_attention_heads=model.num_attention_heads,
            num_query_groups=model.num_query_groups,
            kv_channels=model.head_dim,
            normalization="RMSNorm",
            layernorm_epsilon=model.norm_eps,
            qk_layernorm=True,
            gated_linear_unit=True,
            activation_func=F.silu,
            add_bias_linear=False,
            attention_dropout=0.0,
            hidden_dropout=0.0,
            bf16=bf16,
            params_dtype=torch.bfloat16 if bf16 else torch.float32,
            pipeline_dtype=torch.bfloat16 if bf16 else torch.float32,
            perform_initialization=False,
            deterministic_mode=config.run.deterministic,
            gradient_accumulation_fusion=False,  # the engine turns it on where it can be had
            # The engine normalises the loss itself; gradients are summed over ranks, not averaged.
            calculate_per_token_loss=True,
            **specs.settings_of_device(),
            **_expert_settings(config),
            **_parallel_settings(config, layout),
        )


def _expert_settings(config: Config) -> dict[str, object]:
    model = config.model
    if not model.num_experts:
        return {}
    return {
        "num_moe_experts": model.num_experts,
        "moe_ffn_hidden_size": model.expert_ffn_hidden_size,
        "moe_router_topk": model.experts_per_token,
        "moe_router_dtype": "fp32",
        "moe_router_pre_softmax": False,
        "moe_aux_loss_coeff": model.router_aux_loss,
        "moe_router_load_balancing_type": "none",  # the router of ours balances by itself
        "moe_token_dispatcher_type": "alltoall",
    }


def _parallel_settings(config: Config, layout: Layout) -> dict[str, object]:
    parallel = config.parallel
    settings: dict[str, object] = {
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "context_parallel_size": layout.context,
        "expert_model_parallel_size": layout.expert,
        "expert_tensor_parallel_size": layout.expert_tensor,
        "sequence_parallel": parallel.sequence and layout.tensor > 1,
    }
    if layout.pipeline > 1:
        settings |= _pipeline_settings(layout)
    if parallel.recompute == "full":
        settings |= {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    elif parallel.recompute == "selective":
        settings |= {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}
    return settings


def _pipeline_settings(layout: Layout) -> dict[str, object]:
    """Layers per stage as megatron-core's layout string: its own counts drop uneven layers."""
    stages = ["t" * layers for layers in layout.stage_layers]
    stages[0] = "E" + stages[0]
    stages[-1] += "L"
    # Virtual stages send while they compute. With two pipeline ranks both neighbours are one rank,
    # and batched sends pair up with the wrong receives: unbatched ones come in order and right.
    has_virtual_stages = layout.virtual > 1
    return {
        "pipeline_model_parallel_layout": "|".join(stages),
        "virtual_pipeline_model_parallel_size": layout.virtual if has_virtual_stages else None,
        "overlap_p2p_comm": has_virtual_stages,
        "batch_p2p_comm": not has_virtual_stages,
    }
