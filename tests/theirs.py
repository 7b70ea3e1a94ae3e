"""transformers' Qwen3 with our weights: `network = theirs(model, as_theirs(weights, model))`.

The copy of weights stands here a second time, apart from the one of `convert`, to check both.
"""

import re

import torch


@torch.no_grad()
def randomize(model):
    """Weights large enough that every part of the model shows in the logits, norms far from 1."""
    random = torch.Generator().manual_seed(11)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=random)
        parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.12 * noise)


# transformers' name and ours; {} is the layer.
_NAMES = {
    "model.embed_tokens.weight": "embedding.word_embeddings.weight",
    "model.norm.weight": "decoder.final_layernorm.weight",
    "lm_head.weight": "output_layer.weight",
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "pre_mlp_layernorm.weight",
    "self_attn.q_norm.weight": "self_attention.q_layernorm.weight",
    "self_attn.k_norm.weight": "self_attention.k_layernorm.weight",
    "self_attn.o_proj.weight": "self_attention.linear_proj.weight",
    "mlp.down_proj.weight": "mlp.linear_fc2.weight",
    "mlp.gate.weight": "mlp.router.weight",
    "mlp.experts.gate_up_proj": "mlp.experts.weight1",
    "mlp.experts.down_proj": "mlp.experts.weight2",
}


def as_theirs(ours, model):
    """Our tensors by transformers' names; gradients move as the weights do."""
    theirs = {}
    for name, tensor in ours.items():
        layer, inner = re.fullmatch(r"(?:decoder\.layers\.(\d+)\.)?(.*)", name).groups()
        prefix = f"model.layers.{layer}." if layer else ""
        for part, value in _parts(inner, tensor, model):
            theirs[prefix + part] = value
    return theirs


def as_trained(whole):
    """Tensors of `shards.assemble`, all layers in one, by the names of a model's parameters."""
    named = {}
    for key, tensor in whole.items():
        name = re.sub(r"experts\.experts\.linear_fc(\d)\.weight", r"experts.weight\1", key)
        if not name.startswith("decoder.layers."):
            named[name] = tensor
        elif not name.endswith("expert_share"):
            inner = name.removeprefix("decoder.layers.")
            named |= {f"decoder.layers.{layer}.{inner}": one for layer, one in enumerate(tensor)}
    return named


def _parts(name, tensor, model):
    if name.endswith("linear_qkv.weight"):
        # Per key-value group: its query heads, the key head, the value head.
        heads = model.num_attention_heads // model.num_query_groups
        grouped = tensor.view(model.num_query_groups, heads + 2, model.head_dim, -1)
        for part, value in zip("qkv", grouped.split([heads, 1, 1], dim=1), strict=True):
            yield f"self_attn.{part}_proj.weight", value.reshape(-1, tensor.shape[1])
    elif name.endswith("linear_fc1.weight"):
        gate, up = tensor.chunk(2)
        yield from (("mlp.gate_proj.weight", gate), ("mlp.up_proj.weight", up))
    else:
        (their_name,) = [theirs for theirs, our_name in _NAMES.items() if our_name == name]
        yield their_name, tensor


def theirs(model, weights, rope=None):
    """Their network; `model` is the table of settings, `weights` by their names.

    rope: the table [rope]; without it positions are plain.
    """
    import transformers

    positions = {"rope_type": "default", "rope_theta": model.rope_theta}
    if rope is not None and rope.yarn_factor > 1:
        positions |= {
            "rope_type": "yarn",
            "factor": rope.yarn_factor,
            "original_max_position_embeddings": rope.yarn_original_length,
        }

    shared = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "head_dim": model.head_dim,
        "rms_norm_eps": model.norm_eps,
        "rope_parameters": positions,
        "tie_word_embeddings": model.tie_embeddings,
        "attn_implementation": "eager",
    }
    if model.num_experts:
        config = transformers.Qwen3MoeConfig(
            num_experts=model.num_experts,
            num_experts_per_tok=model.experts_per_token,
            moe_intermediate_size=model.expert_ffn_hidden_size,
            norm_topk_prob=True,
            **shared,
        )
        network = transformers.Qwen3MoeForCausalLM(config)
    else:
        network = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shared))
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"] if model.tie_embeddings else [], [])
    return network
