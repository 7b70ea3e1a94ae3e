"""The size of a Qwen3 model in closed form: parameters, active parameters, and work per token.

Pure arithmetic on `ModelConfig`, without torch: it plans runs before a GPU is there, turns step
times into TFLOP/s and MFU, and tests compare the built model with it. The counts are exact: they
equal those of the released checkpoints.

Letters: L layers, h hidden, a = heads * head_dim, k = groups * head_dim, V vocabulary, S positions.
"""

from megatron_qwen3.settings import ModelConfig


def parameter_count(model: ModelConfig) -> int:
    """Number of trained weights; a tied output layer counts once."""
    return _parameters(model, max(model.num_experts, 1))


def active_parameter_count(model: ModelConfig) -> int:
    """Number of weights that one token uses: of the experts, its own. Dense models: all."""
    return _parameters(model, max(model.experts_per_token, 1))


def flops_per_token(model: ModelConfig, sequence_length: int) -> float:
    """Floating point operations of forward and backward for one trained token of a causal sequence.

    6 [ L (2 h a + 2 h k + 3 h ffn) + h V ] + 6 S a L: two operations per multiply-add, forward
    once and backward twice; ffn is that of the experts a token is sent to; a reward model's V is 1,
    the outputs of its head. The second term is
    attention over S / 2 positions on average (the count of Megatron-LM, arXiv 2104.04473 appendix,
    halved for the causal mask). Logits count; the embedding look-up, the router and recomputation
    do not: this is the model's own work, not a run's total.
    """
    attention_width = model.num_attention_heads * model.head_dim
    active_mlp = _mlp_weights(model, max(model.experts_per_token, 1))
    weights = model.num_layers * (_attention_weights(model) + active_mlp)
    weights += model.hidden_size * _outputs(model)
    return 6.0 * weights + 6.0 * sequence_length * attention_width * model.num_layers


def _parameters(model: ModelConfig, experts: int) -> int:
    norms = (
        2 * model.hidden_size + 2 * model.head_dim
    )  # before attention and MLP; of queries and keys
    router = model.hidden_size * model.num_experts
    layer = _attention_weights(model) + _mlp_weights(model, experts) + router + norms
    is_tied = model.tie_embeddings and model.head == "vocabulary"
    rows = model.vocab_size + (0 if is_tied else _outputs(model))
    return model.num_layers * layer + (rows + 1) * model.hidden_size  # 1 is the last norm


def _outputs(model: ModelConfig) -> int:
    """Number of outputs of the last layer per position."""
    return model.vocab_size if model.head == "vocabulary" else 1


def _attention_weights(model: ModelConfig) -> int:
    heads_in_and_out = 2 * (model.num_attention_heads + model.num_query_groups)  # q, o; k, v
    return heads_in_and_out * model.head_dim * model.hidden_size


def _mlp_weights(model: ModelConfig, experts: int) -> int:
    """Gate, up and down matrices of a dense layer, or of `experts` experts."""
    width = experts * model.expert_ffn_hidden_size if model.num_experts else model.ffn_hidden_size
    return 3 * model.hidden_size * width
