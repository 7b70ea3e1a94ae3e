"""Numbers and weights of a hash, by which golden files name tensors without holding them.

    q = 2 * uniform((4, S, D), seed)
    fill(model, groups=2)            # our parameters, as the files' models have them

The rule stands in the files (`weights_rule`): u[i] = mix(i, seed)/2^31 - 1 in order of rows, and a
weight is base + scale · u, whose seed is of its layer, its kind and its expert.
"""

import re

import numpy as np
import torch

from megatron_qwen3.config import load
from megatron_qwen3.model.build import build
from megatron_qwen3.parallel.runtime import start

_WORD = 2**32
_PARTS = {
    "input_layernorm.weight": (1,),
    "self_attention.linear_qkv.weight": (2, 3, 4),
    "self_attention.linear_proj.weight": (5,),
    "self_attention.q_layernorm.weight": (6,),
    "self_attention.k_layernorm.weight": (7,),
    "pre_mlp_layernorm.weight": (8,),
    "mlp.linear_fc1.weight": (9, 10),
    "mlp.linear_fc2.weight": (11,),
    "mlp.experts.weight1": (9, 10),
    "mlp.experts.weight2": (11,),
    "mlp.router.weight": (12,),
}
_OUTSIDE = {
    "embedding.word_embeddings.weight": 999001,
    "decoder.final_layernorm.weight": 999002,
    "output_layer.weight": 999003,
}


def mix(count, seed):
    """murmur3's finaliser of (i + seed · 2654435761) mod 2^32, for i below `count`."""
    h = (np.arange(count, dtype=np.uint64) + seed * 2654435761 % _WORD) % _WORD
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h ^= h >> np.uint64(shift)
        h = h * np.uint64(factor) % _WORD
    return h


def uniform(shape, seed):
    """Numbers between -1 and 1, float64."""
    values = mix(int(np.prod(shape)), seed).astype(np.float64) / 2**31 - 1
    return torch.from_numpy(values).view(*shape)


def token_ids(length, seed, vocabulary):
    return torch.from_numpy((mix(length, seed) % np.uint64(vocabulary)).astype(np.int64))


@torch.no_grad()
def fill(model, groups):
    """Every parameter of a model on one rank, whose attention has so many key/value groups."""
    for name, parameter in model.named_parameters():
        if name in _OUTSIDE:
            scale, base = {999001: (1, 0), 999002: (0.2, 1)}.get(
                _OUTSIDE[name], (4 * (3 / parameter.shape[-1]) ** 0.5, 0)
            )
            parameter.copy_(base + scale * uniform(parameter.shape, _OUTSIDE[name]))
            continue
        layer, inner = re.fullmatch(r"decoder\.layers\.(\d+)\.(.*)", name).groups()
        seeds = [1000 * int(layer) + slot for slot in _PARTS[inner]]
        if parameter.ndim == 3:
            each = [[seed + 100 * (e + 1) for seed in seeds] for e in range(len(parameter))]
            parameter.copy_(torch.stack([_linear(parameter.shape[1:], s) for s in each]))
        elif inner.endswith("linear_qkv.weight"):
            parameter.copy_(_by_group(parameter.shape, seeds, groups))
        elif parameter.ndim == 1:
            base, scale = (1.5, 0.5) if "self_attention" in inner else (1, 0.2)
            parameter.copy_(base + scale * uniform(parameter.shape, *seeds))
        else:
            parameter.copy_(_linear(parameter.shape, seeds))


def _linear(shape, seeds):
    """Equal parts below each other, one for each seed."""
    rows, width = shape
    scale = (3 / width) ** 0.5
    return torch.cat([scale * uniform((rows // len(seeds), width), seed) for seed in seeds])


def _by_group(shape, seeds, groups, heads_per_group=2):
    """Queries, key and value of each group together; the files' models have two heads in each."""
    head_dim = shape[0] // groups // (heads_per_group + 2)
    scale, parts = (3 / shape[1]) ** 0.5, []
    for seed, heads in zip(seeds, (heads_per_group, 1, 1), strict=True):
        part = scale * uniform((groups * heads * head_dim, shape[1]), seed)
        parts.append(part.view(groups, heads, head_dim, shape[1]))
    return torch.cat(parts, 1).flatten(0, 2)


def logits_of(all_settings, lengths_and_seeds):
    """[S, V] of each model and text, all in one process."""
    configs = [load([], settings) for settings in all_settings]
    layout, found = start(configs[0]), []
    for config, (length, seed) in zip(configs, lengths_and_seeds, strict=True):
        (model,) = build(config, layout)
        fill(model, config.model.num_query_groups)
        ids = token_ids(length, seed, config.model.vocab_size)
        with torch.no_grad():
            found.append(model(ids[None]).whole()[:, 0])
    return found
