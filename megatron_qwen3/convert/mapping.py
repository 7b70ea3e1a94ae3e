"""The one table of weights, ours and Hugging Face's, read in both directions: `weights(model)`.

Each tensor of ours is made of whole rows of HF tensors, taken in turns. `linear_qkv` takes, per
key/value group, the rows of the group's query heads, of its key head and of its value head;
`linear_fc1` stacks gate and up (`model/gate_and_up.py`); everything else is one HF tensor as it is.
So no weight is ever computed: a conversion moves rows, and its inverse moves them back.

In a checkpoint our tensors have the names of our own layer or of Transformer Engine's, which keeps
a norm's scale in the linear after it; layers, and experts likewise, are stacked along a first axis,
or single under their numbers. `locate` reads all of these. Expert numbers are global, never those
of a rank. Nothing here imports torch.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from megatron_qwen3.model import gate_and_up
from megatron_qwen3.settings import ModelConfig

SCALAR_HEAD = "scalar_head.weight"  # of a reward model, in place of the output layer
EXPERT_SHARE = "decoder.layers.mlp.router.expert_share"  # a buffer of ours, not a weight
Index = tuple[int, ...]  # (), (layer,) or (layer, expert)


@dataclass(frozen=True)
class CopiedRows:
    """Rows that lie together in both: `rows` of `part` from `part_row`, ours from `row`."""

    part: int
    part_row: int
    row: int
    rows: int


@dataclass(frozen=True)
class Weight:
    """One row of the table.

    `names`: ours, that of the local layer first. `parts`: HF's, with {layer} and {expert}.
    `turn`: rows taken from each part per turn, `turns` times. A vector is one row; `leading` are
    the numbers of layers and experts that have such a tensor.
    """

    names: tuple[str, ...]
    parts: tuple[str, ...]
    turn: tuple[int, ...]
    columns: int
    leading: Index = ()
    turns: int = 1
    vector: bool = False

    @property
    def rows(self) -> int:
        return self.turns * sum(self.turn)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one of our tensors, without layer and expert."""
        return (self.columns,) if self.vector else (self.rows, self.columns)

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        """The shape of all of them stacked, as in our checkpoints."""
        return self.leading + self.shape

    def part_shape(self, part: int) -> tuple[int, ...]:
        return (self.columns,) if self.vector else (self.turns * self.turn[part], self.columns)

    def part_name(self, part: int, index: Index) -> str:
        return self.parts[part].format(**dict(zip(("layer", "expert"), index, strict=False)))

    def indices(self) -> Iterator[Index]:
        """() or every (layer,) or (layer, expert), in order."""
        return product(*map(range, self.leading))

    def pieces(self) -> Iterator[CopiedRows]:
        """The rows of the parts, in their order in ours."""
        row = 0
        for turn in range(self.turns):
            for part, rows in enumerate(self.turn):
                yield CopiedRows(part, turn * rows, row, rows)
                row += rows


def weights(model: ModelConfig) -> tuple[Weight, ...]:
    """Every tensor of the model, in the order of the forward pass."""
    embedding = _matrix(
        "embedding.word_embeddings.weight",
        "model.embed_tokens.weight",
        model.vocab_size,
        model.hidden_size,
    )
    final = _vector(("decoder.final_layernorm.weight",), "model.norm.weight", model.hidden_size)
    mlp = _experts(model) if model.num_experts else _dense_mlp(model)
    return (embedding, *_attention(model), *mlp, final, *_head(model))


def _head(model: ModelConfig) -> tuple[Weight, ...]:
    hidden = model.hidden_size
    if model.head == "scalar":
        return (_matrix(SCALAR_HEAD, "score.weight", 1, hidden),)
    if model.tie_embeddings:
        return ()
    return (_matrix("output_layer.weight", "lm_head.weight", model.vocab_size, hidden),)


_OURS, _THEIRS = "decoder.layers.", "model.layers.{layer}."


def _attention(model: ModelConfig) -> tuple[Weight, ...]:
    layers, hidden, head = (model.num_layers,), model.hidden_size, model.head_dim
    queries = model.num_attention_heads // model.num_query_groups * head
    ours, theirs = _OURS + "self_attention.", _THEIRS + "self_attn."
    return (
        _vector(
            (_OURS + "input_layernorm.weight", ours + "linear_qkv.layer_norm_weight"),
            _THEIRS + "input_layernorm.weight",
            hidden,
            layers,
        ),
        Weight(
            (ours + "linear_qkv.weight",),
            tuple(f"{theirs}{part}_proj.weight" for part in "qkv"),
            (queries, head, head),
            hidden,
            layers,
            turns=model.num_query_groups,
        ),
        _vector((ours + "q_layernorm.weight",), theirs + "q_norm.weight", head, layers),
        _vector((ours + "k_layernorm.weight",), theirs + "k_norm.weight", head, layers),
        _matrix(
            ours + "linear_proj.weight",
            theirs + "o_proj.weight",
            hidden,
            model.num_attention_heads * head,
            layers,
        ),
    )


def _dense_mlp(model: ModelConfig) -> tuple[Weight, ...]:
    layers, width = (model.num_layers,), model.ffn_hidden_size
    ours, theirs = _OURS + "mlp.", _THEIRS + "mlp."
    fused_norm = (ours + "linear_fc1.layer_norm_weight",)
    return (
        _norm_before_mlp(model, fused_norm),
        _gate_and_up(ours + "linear_fc1.weight", theirs, width, model.hidden_size, layers),
        _matrix(
            ours + "linear_fc2.weight",
            theirs + "down_proj.weight",
            model.hidden_size,
            width,
            layers,
        ),
    )


def _experts(model: ModelConfig) -> tuple[Weight, ...]:
    layers, width = (model.num_layers,), model.expert_ffn_hidden_size
    both = (model.num_layers, model.num_experts)
    ours, theirs = _OURS + "mlp.experts.experts.", _THEIRS + "mlp.experts.{expert}."
    return (
        _norm_before_mlp(model),
        _matrix(
            _OURS + "mlp.router.weight",
            _THEIRS + "mlp.gate.weight",
            model.num_experts,
            model.hidden_size,
            layers,
        ),
        _gate_and_up(ours + "linear_fc1.weight", theirs, width, model.hidden_size, both),
        _matrix(
            ours + "linear_fc2.weight", theirs + "down_proj.weight", model.hidden_size, width, both
        ),
    )


def _norm_before_mlp(model: ModelConfig, other_names: tuple[str, ...] = ()) -> Weight:
    names = (_OURS + "pre_mlp_layernorm.weight", *other_names)
    theirs = _THEIRS + "post_attention_layernorm.weight"
    return _vector(names, theirs, model.hidden_size, (model.num_layers,))


def _gate_and_up(name: str, theirs: str, width: int, columns: int, leading: Index) -> Weight:
    parts = tuple(f"{theirs}{part}_proj.weight" for part in gate_and_up.ORDER)
    return Weight((name,), parts, (width,) * len(parts), columns, leading)


def _matrix(name: str, theirs: str, rows: int, columns: int, leading: Index = ()) -> Weight:
    return Weight((name,), (theirs,), (rows,), columns, leading)


def _vector(names: tuple[str, ...], theirs: str, size: int, leading: Index = ()) -> Weight:
    return Weight(names, (theirs,), (1,), size, leading, vector=True)


_LAYER = re.compile(r"decoder\.layers\.(?P<layer>\d+)\.")
# Grouped experts count after `weight`, sequential ones before `linear`; a checkpoint of either
# that does not stack experts counts after `experts`.
_EXPERT = re.compile(
    r"\.mlp\.experts(\.experts)?(\.local_experts)?(\.(?P<a>\d+))?"
    r"\.(?P<linear>linear_fc[12])(\.(?P<b>\d+))?\.weight(?P<c>\d+)?$"
)


def locate(key: str) -> tuple[str, int | None, int | None]:
    """A name of ours in a checkpoint -> its name in the table, and its numbers of layer and expert.

    None without a number: then the tensor is stacked along that axis, or has no such axis.
    """
    layer = _LAYER.match(key)
    if layer:
        key = _OURS + key[layer.end() :]
    expert = _EXPERT.search(key)
    number = None
    if expert:
        key = f"{key[: expert.start()]}.mlp.experts.experts.{expert['linear']}.weight"
        number = expert["a"] or expert["b"] or expert["c"]
    return key, int(layer["layer"]) if layer else None, int(number) if number else None


def in_order(model: ModelConfig) -> Iterator[tuple[Weight, Index]]:
    """Every tensor of the model, layer by layer."""
    table = weights(model)
    last = table.index(next(w for w in table if w.names[0].startswith("decoder.final")))
    yield table[0], ()
    for layer in range(model.num_layers):
        for weight in table:
            if weight.leading:
                yield from ((weight, index) for index in weight.indices() if index[0] == layer)
    yield from ((weight, ()) for weight in table[last:])
