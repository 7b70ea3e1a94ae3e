"""The Qwen3 sizes, one row each, and two tiny models for tests and laptops.

`model.preset = "qwen3-8b"` fills every field of `ModelConfig` from here; a `model.*` key that a
file or the command line sets replaces the preset's value. Sources: the Qwen3 technical report
(arXiv 2505.09388, tables 1 and 2) and the `config.json` of each released base model. The ffn of
the two sparse models stands in their `config.json`, but no layer uses it: every layer is sparse.

The tiny models have heads * head_dim != hidden on purpose, as four of the eight sizes do.
"""

from typing import Final

ModelValue = int | float | bool | str

_COLUMNS: Final = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "head_dim",
    "vocab_size",
    "tie_embeddings",
    "num_experts",
    "experts_per_token",
    "expert_ffn_hidden_size",
)

# fmt: off
_ROWS: Final[dict[str, tuple[ModelValue, ...]]] = {
    #               layers hidden    ffn heads groups head_dim   vocab   tied experts top moe_ffn
    "qwen3-0.6b":      (28,  1024,  3072,   16,     8,     128, 151936,  True,      0,  0,      0),
    "qwen3-1.7b":      (28,  2048,  6144,   16,     8,     128, 151936,  True,      0,  0,      0),
    "qwen3-4b":        (36,  2560,  9728,   32,     8,     128, 151936,  True,      0,  0,      0),
    "qwen3-8b":        (36,  4096, 12288,   32,     8,     128, 151936, False,      0,  0,      0),
    "qwen3-14b":       (40,  5120, 17408,   40,     8,     128, 151936, False,      0,  0,      0),
    "qwen3-32b":       (64,  5120, 25600,   64,     8,     128, 151936, False,      0,  0,      0),
    "qwen3-30b-a3b":   (48,  2048,  6144,   32,     4,     128, 151936, False,    128,  8,    768),
    "qwen3-235b-a22b": (94,  4096, 12288,   64,     4,     128, 151936, False,    128,  8,   1536),
    "tiny-dense":      ( 4,    64,   192,    4,     2,      32,    512,  True,      0,  0,      0),
    "tiny-moe":        ( 4,    64,   192,    4,     2,      32,    512, False,      8,  2,     64),
}
# fmt: on

# Values of all sizes. rope_theta is that of the released models; the first two stages of
# pretraining run at 10,000 and set it themselves.
_COMMON: Final[dict[str, ModelValue]] = {
    "rope_theta": 1e6,
    "norm_eps": 1e-6,
    "init_std": 0.02,
    "router_aux_loss": 1e-3,
    "router_balance": "last_step",
}

PRESETS: Final[dict[str, dict[str, ModelValue]]] = {
    name: dict(zip(_COLUMNS, row, strict=True)) | _COMMON for name, row in _ROWS.items()
}
