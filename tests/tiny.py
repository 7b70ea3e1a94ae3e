"""A tiny model with random weights in Hugging Face's format: `save(folder)`."""

import pytest

from data_prep import tokenizer as tokenizers

transformers = pytest.importorskip("transformers")

SPARSE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}


def save(folder, sparse=None, seed=0, **changes):
    """Weights and a tokenizer for a, b and c. sparse: the experts; None is a dense model.

    changes: fields of config.json that are other than usual.
    """
    tokenizers.train(["a b c abc ab"] * 9, 300, folder)
    kind = "Qwen3Moe" if sparse else "Qwen3"
    fields = {
        "vocab_size": 320,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
        "initializer_range": 0.2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": False,
    }
    config = getattr(transformers, f"{kind}Config")(**fields | (sparse or {}) | changes)
    transformers.set_seed(seed)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
