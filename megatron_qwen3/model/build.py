"""A Qwen3 as megatron-core's GPTModel: `chunks = build(config, layout)`.

One model chunk per virtual pipeline stage of this rank. megatron-core 0.19 recommends its
HybridModel for new work; GPTModel exists in all supported releases, and this is the only place that
depends on it.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_qwen3.model import scaling, specs
from megatron_qwen3.model.dca import DualChunk
from megatron_qwen3.model.initialize import initialize
from megatron_qwen3.model.logits import Logits, OutputLayer
from megatron_qwen3.model.rope import RotaryTables
from megatron_qwen3.model.scalars import ScalarLayer, Scalars
from megatron_qwen3.model.sequences import Sequences
from megatron_qwen3.parallel import fp8, overlap
from megatron_qwen3.parallel.groups import ProcessGroups
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.parallel.mcore import GPTModel, TransformerConfig
from megatron_qwen3.settings import Config
from megatron_qwen3.settings_fp8 import Fp8Config
from megatron_qwen3.settings_overlap import OverlapConfig


class Qwen3(GPTModel):
    """GPTModel that takes the layout of its rows, and leaves the output of its last stage to heads.

    head: model.head, which decides whether heads get logits or scalars.
    dual_chunk: Dual Chunk Attention, or None.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *args: Any,
        head: str,
        dual_chunk: DualChunk | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, *args, **kwargs)
        self.dual_chunk = dual_chunk
        self.is_scalar = head == "scalar"
        if self.post_process and self.is_scalar:
            self.output_layer = ScalarLayer(config, self.output_layer.tp_group)
        elif self.post_process:
            self.output_layer = OutputLayer(config, self.output_layer)

    def forward(
        self, tokens_BS: Tensor, sequences: Sequences | None = None
    ) -> Tensor | Logits | Scalars:
        """Hidden states [S, B, H] for the next stage; on the last one, logits or scalars."""
        made = self._made(tokens_BS, sequences)
        return super().forward(tokens_BS, None, None, packed_seq_params=made)

    def plan(self, tokens_BS: Tensor, sequences: Sequences | None) -> Any:
        """`forward` as a plan of parts, which megatron-core runs beside another micro-batch's
        backward pass with overlap.experts. It yields hidden states on the last stage, too;
        `last_stage` turns these into logits or scalars."""
        made = self._made(tokens_BS, sequences)
        return self.build_schedule_plan(tokens_BS, None, None, packed_seq_params=made)

    def _made(self, tokens_BS: Tensor, sequences: Sequences | None) -> Sequences | None:
        """The layout of rows, complete for attention; None where each row is one text."""
        if sequences is None and self.dual_chunk is None:
            return None
        sequences = sequences or Sequences()
        return sequences.made_for(*tokens_BS.shape, self.rotary_pos_emb, self.dual_chunk)

    def _postprocess(
        self, hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor | Logits | Scalars:
        in_parts = self.training and self.config.overlap_moe_expert_parallel_comm
        if not self.post_process or in_parts:
            return hidden_states
        return self.last_stage(hidden_states)

    def last_stage(self, hidden_SBH: Tensor) -> Logits | Scalars:
        """Logits or scalars of the last layer's hidden states, normed; [s, B, H] with sequence
        parallelism. A plan's are float32, of the same values."""
        hidden_SBH = hidden_SBH.to(self.config.params_dtype)
        if self.is_scalar:
            scalars: Scalars = self.output_layer(hidden_SBH)
            return scalars
        tied = self.share_embeddings_and_output_weights
        logits: Logits = self.output_layer(hidden_SBH, self.output_weight() if tied else None)
        return logits

    def output_weight(self) -> Tensor:
        """[v, H]: the output matrix of this rank's slice of the vocabulary."""
        if self.share_embeddings_and_output_weights:
            shared: Tensor = self.shared_embedding_or_output_weight()
            return shared
        own: Tensor = self.output_layer.weight
        return own


def build(config: Config, layout: Layout, groups: ProcessGroups | None = None) -> list[Qwen3]:
    """This rank's model chunks with fresh weights, which do not depend on the layout.

    groups: the run's own by default.
    """
    groups = groups or ProcessGroups.of_run()
    model, transformer = config.model, transformer_config(config, layout)
    tied = model.tie_embeddings and model.head == "vocabulary"
    with groups.current():
        chunks = [
            _chunk(config, layout, groups, transformer, index, tied)
            for index in range(layout.virtual)
        ]
        for chunk in chunks:
            chunk.to(torch.cuda.current_device())
            scaling.keep_plain(chunk)
            initialize(chunk, config.run.seed, model.init_std)
    return chunks


def view(
    config: Config, layout: Layout, groups: ProcessGroups, chunks: Sequence[Qwen3]
) -> list[Qwen3]:
    """Chunks for generation that share all parameters and buffers with `chunks`.

    They are in evaluation mode, without the hooks of training, and without sequence parallelism,
    since one token cannot be split. No weight is allocated.
    """
    transformer = transformer_config(
        _of_few_tokens(config), layout, sequence_parallel=False, use_cpu_initialization=True
    )
    with groups.current(), torch.device("meta"):
        views = [
            _chunk(config, layout, groups, transformer, index, tied=False)
            for index in range(layout.virtual)
        ]
    for mine, chunk in zip(views, chunks, strict=True):
        _share(mine, chunk)
    return [mine.eval() for mine in views]


def _of_few_tokens(config: Config) -> Config:
    """Settings without features that need long rows: products in FP8 need 16 positions or more, and
    buffers of DeepEP and HybridEP hold as many tokens as in training, which all ranks must
    bring."""
    by_nccl = replace(config.parallel, dispatch="alltoall")
    return replace(config, fp8=Fp8Config(), overlap=OverlapConfig(), parallel=by_nccl)


def _share(mine: Qwen3, chunk: Qwen3) -> None:
    """Replace the tensors by those of `chunk` with the same names."""
    for path, module in mine.named_modules():
        other = chunk.get_submodule(path)
        for name in (*module._parameters, *module._buffers):
            setattr(module, name, getattr(other, name))
    if chunk.post_process and chunk.share_embeddings_and_output_weights:
        mine.output_layer.weight = chunk.shared_embedding_or_output_weight()


def _chunk(
    config: Config,
    layout: Layout,
    groups: ProcessGroups,
    transformer: TransformerConfig,
    index: int,
    tied: bool,
) -> Qwen3:
    stage, pipeline = index if layout.virtual > 1 else None, groups.ranks.pp
    chunk = Qwen3(
        transformer,
        specs.block_spec(config, transformer, stage),
        vocab_size=config.model.vocab_size,
        max_sequence_length=config.data.sequence_length,
        pre_process=pipeline.rank() == 0 and index == 0,
        post_process=pipeline.rank() == layout.pipeline - 1 and index == layout.virtual - 1,
        share_embeddings_and_output_weights=tied,
        head=config.model.head,
        dual_chunk=DualChunk.of(config.rope),
        position_embedding_type="rope",
        rotary_base=config.model.rope_theta,
        pg_collection=groups.ranks,
        vp_stage=stage,
    )
    chunk.rotary_pos_emb = RotaryTables(config.model.head_dim, config.model.rope_theta, config.rope)
    return chunk


def transformer_config(config: Config, layout: Layout, **settings: Any) -> TransformerConfig:
    """megatron-core's configuration of the model in this layout; `settings` override ours."""
    ours = {
        **specs.settings_of_device(),
        **_expert_settings(config),
        **_parallel_settings(config, layout),
        **specs.settings_of_kind(config),
        **fp8.of_model(config),
        **overlap.of_model(config),
    }
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
            gradient_accumulation_fusion=False,  # the engine turns it on where possible
            # The engine normalises the loss itself; gradients are summed over ranks, not averaged.
            calculate_per_token_loss=True,
            **(ours | settings),
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
        "moe_router_load_balancing_type": "none",  # our router balances by itself
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
    if parallel.context_exchange != "own":
        # Padded documents lengthen a rank's rows by different amounts, which another dispatcher
        # refuses, even for a dense model.
        settings["variable_seq_lengths"] = layout.pipeline > 1
        settings["moe_token_dispatcher_type"] = "alltoall"
        settings["cp_comm_type"] = parallel.context_exchange
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
