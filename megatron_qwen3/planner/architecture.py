"""A transformer for the planner: the matrices of each layer, and how ranks split them.

    architecture = of(config.model)
    architecture.layer_matrices(layer=0)

Qwen3's shapes come from `ModelConfig`. The further fields (latent attention, shared experts,
leading dense layers, sliding windows, ungated MLPs) are there to hold the model against published
runs of other families; for Qwen3 they keep their defaults.
"""

from dataclasses import dataclass
from functools import cached_property

from megatron_qwen3.settings import ModelConfig


@dataclass(frozen=True)
class Matrix:
    """A weight [outputs, inputs] of one layer; a vector has one input.

    `cut`: the dimension that tensor ranks (expert-tensor ranks, for experts) split: "outputs",
    "inputs", or "" where every rank holds all of it. `experts` above 0: that many of it, split
    over the expert ranks.
    """

    name: str
    outputs: int
    inputs: int = 1
    cut: str = ""
    experts: int = 0

    def local_elements(self, tensor: int, expert: int, expert_tensor: int) -> int:
        """Elements on one rank."""
        ranks = (expert_tensor if self.experts else tensor) if self.cut else 1
        return max(self.experts // expert, 1) * self.outputs * self.inputs // ranks


@dataclass(frozen=True)
class Architecture:
    """Shapes of a decoder-only transformer.

    head_dim            of queries and keys; with latent attention without the rotary part
    latent_query_rank, latent_key_value_rank, latent_rope_dim
                        multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)
    dense_layers        leading layers with a dense MLP in a sparse model
    sparse_every        of the other layers each n-th is sparse
    window, window_every  each n-th layer attends to the last `window` positions only
    routed_groups       most groups of experts that a token is sent to (the same, section 2.1.2)
    predicted_layers    multi-token-prediction layers (DeepSeek-V3, arXiv 2412.19437, section 2.2)
    sinks               attention has a learned logit of no token in each softmax (GPT-OSS)
    expert_bias         experts' matrices have biases, and their activations are clamped (GPT-OSS)
    scalar_head         the last layer gives one number per position, as a reward model does
    """

    name: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    ffn_hidden_size: int = 0
    num_experts: int = 0
    experts_per_token: int = 0
    expert_ffn_hidden_size: int = 0
    shared_ffn_hidden_size: int = 0
    tie_embeddings: bool = False
    gated: bool = True
    qk_norm: bool = False
    dense_layers: int = 0
    sparse_every: int = 1
    latent_query_rank: int = 0
    latent_key_value_rank: int = 0
    latent_rope_dim: int = 0
    window: int = 0
    window_every: int = 1
    routed_groups: int = 0
    predicted_layers: int = 0
    sinks: bool = False
    expert_bias: bool = False
    scalar_head: bool = False

    @property
    def outputs(self) -> int:
        """Number of outputs of the last layer per position."""
        return 1 if self.scalar_head else self.vocab_size

    def is_sparse(self, layer: int) -> bool:
        """Whether `layer`, counted from 0, has experts."""
        if not self.num_experts or layer < self.dense_layers:
            return False
        return (layer - self.dense_layers) % self.sparse_every == self.sparse_every - 1

    def has_window(self, layer: int) -> bool:
        """Whether `layer` attends to a window only."""
        return bool(self.window) and layer % self.window_every == 0

    def local_elements(
        self, layer: int, tensor: int, expert: int, expert_tensor: int
    ) -> tuple[int, int]:
        """Elements of `layer` on one rank: outside experts, and in them."""
        dense = sparse = 0
        for matrix in self.layer_matrices(layer):
            elements = matrix.local_elements(tensor, expert, expert_tensor)
            if matrix.experts:
                sparse += elements
            else:
                dense += elements
        return dense, sparse

    def flops_per_token(self, sequence_length: int) -> float:
        """Forward and backward of one trained token, counted as model/flops.py counts."""
        layers = range(self.num_layers + self.predicted_layers)
        weights = sum(self._active_weights(min(i, self.num_layers - 1)) for i in layers)
        weights += (1 + self.predicted_layers) * self.hidden_size * self.outputs
        width = self.num_attention_heads * (self.head_dim + self.latent_rope_dim / 2)
        pairs = 0.0
        for layer in layers:
            half = sequence_length / 2
            pairs += min(half, self.window) if self.has_window(layer) else half
        return 6.0 * weights + 12.0 * pairs * width

    def _active_weights(self, layer: int) -> int:
        """Weights of matrices that one token uses, without router and norms."""
        matrices = [m for m in self.layer_matrices(layer) if m.inputs > 1 and m.name != "router"]
        return sum(
            m.outputs * m.inputs * (self.experts_per_token if m.experts else 1) for m in matrices
        )

    @cached_property
    def sparse_layers(self) -> int:
        """How many layers have experts."""
        return sum(map(self.is_sparse, range(self.num_layers)))

    def layer_matrices(self, layer: int) -> tuple[Matrix, ...]:
        """The weights of `layer` in the order in which model/layer.py registers them."""
        return self._sparse_layer if self.is_sparse(layer) else self._dense_layer

    @cached_property
    def _dense_layer(self) -> tuple[Matrix, ...]:
        return (*self.attention_matrices, *self.mlp_matrices)

    @cached_property
    def _sparse_layer(self) -> tuple[Matrix, ...]:
        return (*self.attention_matrices, *self.expert_matrices)

    @cached_property
    def attention_matrices(self) -> tuple[Matrix, ...]:
        """With both norms of the layer, though the second belongs to the MLP."""
        h, d, heads = self.hidden_size, self.head_dim, self.num_attention_heads
        norm = Matrix("input_layernorm", h)
        before_mlp = Matrix("pre_mlp_layernorm", h)
        if self.latent_key_value_rank:
            return (norm, *self._latent_matrices(), before_mlp)
        norms = (Matrix("q_layernorm", d), Matrix("k_layernorm", d)) if self.qk_norm else ()
        return (
            norm,
            Matrix("linear_qkv", (heads + 2 * self.num_query_groups) * d, h, "outputs"),
            Matrix("linear_proj", h, heads * d, "inputs"),
            *norms,
            before_mlp,
        )

    def _latent_matrices(self) -> tuple[Matrix, ...]:
        h, d, heads = self.hidden_size, self.head_dim, self.num_attention_heads
        query, latent, rope = (
            self.latent_query_rank,
            self.latent_key_value_rank,
            self.latent_rope_dim,
        )
        queries: tuple[Matrix, ...]
        if query:
            queries = (
                Matrix("linear_q_down", query, h),
                Matrix("q_layernorm", query),
                Matrix("linear_q_up", heads * (d + rope), query, "outputs"),
            )
        else:
            queries = (Matrix("linear_q", heads * (d + rope), h, "outputs"),)
        return (
            *queries,
            Matrix("linear_kv_down", latent + rope, h),
            Matrix("kv_layernorm", latent),
            Matrix("linear_kv_up", heads * 2 * d, latent, "outputs"),
            Matrix("linear_proj", h, heads * d, "inputs"),
        )

    @property
    def prediction_matrix(self) -> Matrix:
        """The matrix that joins a predicted layer's hidden state and next embedding."""
        return Matrix("prediction", self.hidden_size, 2 * self.hidden_size, "outputs")

    @cached_property
    def mlp_matrices(self) -> tuple[Matrix, ...]:
        """A dense MLP; gate and up are one matrix."""
        return self._mlp("linear_fc", self.ffn_hidden_size)

    @cached_property
    def expert_matrices(self) -> tuple[Matrix, ...]:
        """Router, experts, and the shared expert, if there is one."""
        h, f, n = self.hidden_size, self.expert_ffn_hidden_size, self.num_experts
        shared = self._mlp("shared_fc", self.shared_ffn_hidden_size)
        return (
            Matrix("router", n, h),
            Matrix("expert_fc1", (2 if self.gated else 1) * f, h, "outputs", n),
            Matrix("expert_fc2", h, f, "inputs", n),
            *(shared if self.shared_ffn_hidden_size else ()),
        )

    def _mlp(self, name: str, width: int) -> tuple[Matrix, ...]:
        h = self.hidden_size
        return (
            Matrix(f"{name}1", (2 if self.gated else 1) * width, h, "outputs"),
            Matrix(f"{name}2", h, width, "inputs"),
        )


def of(model: ModelConfig) -> Architecture:
    """The architecture of a validated Qwen3 configuration."""
    return Architecture(
        name=model.preset or "model",
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        head_dim=model.head_dim,
        ffn_hidden_size=model.ffn_hidden_size,
        num_experts=model.num_experts,
        experts_per_token=model.experts_per_token,
        expert_ffn_hidden_size=model.expert_ffn_hidden_size,
        tie_embeddings=model.tie_embeddings and model.head == "vocabulary",
        qk_norm=True,
        scalar_head=model.head == "scalar",
    )
