"""Activations that the forward pass saves for backward: bytes per position, part by part.

    kept = layer_bytes(job, layer=0)          # of one micro-batch on one rank

Counted from the code: every tensor that an autograd node of model/layer.py, model/ops.py,
model/grouped.py and model/router.py saves, each storage once. For published runs the same is
counted for Transformer Engine's fused layers (method of arXiv 2205.05198, section 4, without its
dropout). Letters: h hidden, a = heads · head_dim, k = groups · head_dim, f width of the MLP.
"""

import math

from megatron_qwen3.planner.job import Job

_FP8 = ("fp8", "mxfp8", "nvfp4")
TILE_BYTES = 256 << 20  # a test keeps it equal to model/tiles.py's


def layer_bytes(job: Job, layer: int) -> float:
    """Bytes that `layer` saves for one micro-batch on one rank."""
    width = job.weight_bytes
    if "layer" in job.recompute:
        return _shared(job) * width * job.model.hidden_size
    if layer < job.offload_layers:
        return 0.0
    mlp = mlp_bytes(job, layer)
    if job.recompute & {"mlp", "moe"}:
        mlp = 0.0
    masks = 2 * _shared(job) * job.model.hidden_size if job.dropout else 0.0  # one byte each
    whole = masks + attention_bytes(job) + _shared(job) * width * job.model.hidden_size + mlp
    return whole - offloaded_bytes(job, layer)


def offloaded_bytes(job: Job, layer: int) -> float:
    """Bytes of `layer`'s activations of one micro-batch that wait on the host; megatron-core leaves
    tensors of less than a million elements on the device."""
    if layer < job.offload_layers:
        kept = attention_bytes(job) + mlp_bytes(job, layer)
        return kept + _shared(job) * job.weight_bytes * job.model.hidden_size
    parts = _part_bytes(job) if job.model.is_sparse(layer) else _attention_part_bytes(job)
    return sum(parts[part] for part in job.offload_parts if part in parts)


def _attention_part_bytes(job: Job) -> dict[str, float]:
    """Bytes of the first product's input with its norm; of queries, keys and values; of the
    result."""
    model, width, tokens = job.model, job.weight_bytes, job.micro_batch_tokens / job.layout.tensor
    a, k = model.num_attention_heads * model.head_dim, model.num_query_groups * model.head_dim
    return {
        "qkv_linear": _shared(job) * model.hidden_size * (width + _linear_input(job)),
        "core_attn": tokens * width * (a + 2 * k),
        "attn_proj": tokens * width * a,
    }


def _part_bytes(job: Job) -> dict[str, float]:
    """Bytes of a sparse layer: attention's parts; the input of the MLP's norm; rows of experts and
    their first product."""
    model, layout = job.model, job.layout
    rows = job.micro_batch_tokens / layout.tensor * model.experts_per_token * layout.expert_tensor
    inner = model.expert_ffn_hidden_size / layout.expert_tensor
    return _attention_part_bytes(job) | {
        "mlp_norm": _shared(job) * model.hidden_size * job.weight_bytes,
        "expert_fc1": rows * _linear_input(job) * model.hidden_size,
        "moe_act": rows * inner * (2 if model.gated else 1) * job.weight_bytes,
    }


def attention_bytes(job: Job) -> float:
    """Input and normalised input, queries, keys, values, and attention's result."""
    model, width, tp = job.model, job.weight_bytes, job.layout.tensor
    tokens, shared = job.micro_batch_tokens, _shared(job)
    heads, h = model.num_attention_heads, model.hidden_size
    a, k = heads * model.head_dim, model.num_query_groups * model.head_dim
    input_width = 1 if "layernorm" in job.recompute else 1 + _linear_input(job) / width
    log_sum_exp = 4 * heads
    if model.latent_key_value_rank:
        return shared * width * h * input_width + tokens * _latent_bytes(job)
    if job.kernels == "torch":
        # The product; q, k and v in attention's memory order; the result by head and by position,
        # which
        # are one where context ranks share a row.
        inner = 2 * (a + 2 * k) + (2 * a if job.layout.context == 1 else a)
    else:
        inner = (a + 2 * k) + a + (a + k if model.qk_norm else 0)
    inner_bytes = width * inner + log_sum_exp + _square_bytes(job)
    return shared * width * h * input_width + tokens * inner_bytes / tp


def exchange_bytes(job: Job) -> float:
    """The peak of our attention over context ranks, in one layer's backward pass.

    Keys and values of all places, gathered again; their gradients in float32, and copies while they
    are exchanged; besides, gradients of this rank's queries and of the result.
    """
    if job.layout.context == 1 or not job.gathers_keys:
        return 0.0
    model, tokens = job.model, job.micro_batch_tokens
    keys = 2 * model.num_query_groups * model.head_dim * tokens * job.layout.context
    queries = model.num_attention_heads * model.head_dim * tokens
    of_keys = job.weight_bytes + 8 + 4 / job.layout.context
    return (keys * of_keys + queries * (job.weight_bytes + 4)) / job.layout.tensor


def _square_bytes(job: Job) -> float:
    """Per position, without fused attention: the softmax, and with dropout mask and result."""
    if job.fused_attention or "core_attn" in job.recompute:
        return 0.0
    per_pair = job.weight_bytes + (1 + job.weight_bytes if job.dropout else 0)
    return per_pair * job.sequence_length * job.model.num_attention_heads


def _latent_bytes(job: Job) -> float:
    """Per position: both latents and their norms, then queries, keys, values and the result."""
    model, width, tp = job.model, job.weight_bytes, job.layout.tensor
    heads, d, rope = model.num_attention_heads, model.head_dim, model.latent_rope_dim
    latents = 2 * (model.latent_query_rank + model.latent_key_value_rank) + rope
    projected = 0 if "mla_up_proj" in job.recompute else heads * (2 * (d + rope) + d)
    inner = width * (projected + heads * d) + 4 * heads + _square_bytes(job)
    return width * latents / job.sequence_ranks + inner / tp


def mlp_bytes(job: Job, layer: int) -> float:
    """Bytes of the MLP's normalised input and everything after it."""
    model, width = job.model, job.weight_bytes
    shared, h = _shared(job), model.hidden_size
    is_sparse = model.is_sparse(layer)
    # The router and the exchange read the norm's output in the model's precision; our router keeps
    # a float32 copy in its place, and our exchange nothing.
    is_copied = job.kernels == "torch" and width < 4
    norm_width = (0 if is_copied else width) if is_sparse else _linear_input(job)
    norm = 0.0 if "layernorm" in job.recompute else shared * norm_width * h
    if not is_sparse:
        ffn = job.micro_batch_tokens * model.ffn_hidden_size / job.layout.tensor
        return norm + ffn * _activation_width(job, "mlp_act")
    return norm + shared * _router_bytes(job) + expert_bytes(job)


def expert_bytes(job: Job) -> float:
    """Bytes of rows of this rank's experts, and of their products, under an even load."""
    model, layout = job.model, job.layout
    tokens = job.micro_batch_tokens / layout.tensor
    rows = tokens * model.experts_per_token * layout.expert_tensor
    inner = model.expert_ffn_hidden_size / layout.expert_tensor
    kept = rows * (_linear_input(job) * model.hidden_size + inner * _activation_width(job, "moe"))
    if model.shared_ffn_hidden_size:
        ffn = job.micro_batch_tokens * model.shared_ffn_hidden_size / layout.tensor
        kept += ffn * _activation_width(job, "shared")
    if job.kernels == "torch":
        kept += rows * 28  # int64 places on both sides of the exchange, float32 probabilities
    return kept


def logits_bytes(job: Job) -> float:
    """The loss's bytes on the last stage: with our tiles, one tile of logits and the gradients of
    hidden states and matrix; otherwise the logits, and their softmax in float32.

    A scalar head saves its input, in float32.
    """
    if job.model.scalar_head:
        return 4 * _shared(job) * job.model.hidden_size
    local_vocab = job.model.vocab_size / job.layout.tensor
    if job.tiled_logits:
        return _tile_bytes(job, job.micro_batch_tokens, math.ceil(local_vocab))
    times = 1 + job.model.predicted_layers
    return times * job.micro_batch_tokens * local_vocab * (job.weight_bytes + 4)


def _tile_bytes(job: Job, positions: int, columns: int) -> float:
    """The gradient of the hidden states; of one tile the logits, e of each in float32, and the
    gradient; with several tiles, a float32 sum of the hidden states' gradient. The gradient of the
    matrix for autograd appears after all tiles are gone, except a single one that is kept from the
    forward pass. See model/tiles.py."""
    hidden, width = job.model.hidden_size, job.weight_bytes
    area = min(positions * columns, TILE_BYTES // 4)
    is_one = area == positions * columns
    tile_columns = min(columns, max(math.isqrt(area), area // positions))
    tile = area * (4 if width == 4 else 6 if is_one else 8)
    sums = 0 if tile_columns == columns or width == 4 else 4 * area // tile_columns * hidden
    of_hidden, of_matrix = width * hidden * positions, width * hidden * columns
    return of_hidden + (tile + of_matrix if is_one else max(tile + sums, of_matrix))


def _shared(job: Job) -> float:
    """Number of a micro-batch's positions that this rank holds outside the matrix products."""
    return job.micro_batch_tokens / job.sequence_ranks


def _linear_input(job: Job) -> float:
    """Bytes per element of the input that a linear layer saves, in its low precision."""
    return 1.0 if job.precision in _FP8 and job.kernels != "torch" else job.weight_bytes


def _activation_width(job: Job, kind: str) -> float:
    """Bytes saved per column of the MLP: gate and up, and the second matrix's input.

    Our experts compute the activation again in backward; Transformer Engine does if set so.
    """
    before = (2 if job.model.gated else 1) * job.weight_bytes
    if kind == "moe" and (job.kernels == "torch" or "moe_act" in job.recompute):
        return before
    return before + _linear_input(job)


def _router_bytes(job: Job) -> float:
    """Bytes per position: float32 input (torch), probabilities, choices."""
    model = job.model
    if job.kernels == "torch":
        copy = 4 * model.hidden_size if job.weight_bytes < 4 else 0
        return copy + 4 * model.num_experts + 28 * model.experts_per_token
    return 9 * model.num_experts
