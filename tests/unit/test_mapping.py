"""The table of weights: nothing is lost or moved twice, and names of every kind are understood."""

from math import prod

import pytest

from megatron_qwen3.config import load
from megatron_qwen3.convert.mapping import in_order, locate, weights
from megatron_qwen3.model.flops import parameter_count
from megatron_qwen3.presets import PRESETS


def model(*overrides):
    return load([], ["train.steps=1", *(f"model.{o}" for o in overrides)]).model


def weight(name, *overrides):
    (found,) = [w for w in weights(model(*overrides)) if w.names[0].endswith(name)]
    return found


@pytest.mark.parametrize("tied", ["true", "false"])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_table_has_every_parameter_once(preset, tied):
    of = model(f"preset={preset}", f"tie_embeddings={tied}")
    table = weights(of)
    assert sum(prod(w.stacked_shape) for w in table) == parameter_count(of)
    in_parts = sum(
        prod(w.leading) * prod(w.part_shape(part)) for w in table for part in range(len(w.parts))
    )
    assert in_parts == parameter_count(of)


@pytest.mark.parametrize("preset", ["tiny-dense", "tiny-moe"])
def test_a_reward_models_table_ends_with_its_head_and_has_no_output_layer(preset):
    of = load([], ["train.steps=1", f"model.preset={preset}", "run.mode=reward"]).model
    table = weights(of)
    assert sum(prod(w.stacked_shape) for w in table) == parameter_count(of)
    head = table[-1]
    assert (head.names, head.parts) == (("scalar_head.weight",), ("score.weight",))
    assert head.shape == (1, of.hidden_size)
    assert [*in_order(of)][-1] == (head, ())
    assert not any("output_layer" in name for w in table for name in w.names)


@pytest.mark.parametrize("preset", PRESETS)
def test_pieces_cover_every_row_of_ours_and_of_each_part_once(preset):
    for w in weights(model(f"preset={preset}")):
        ours, parts = [], [[] for _ in w.parts]
        for piece in w.pieces():
            ours += range(piece.row, piece.row + piece.rows)
            parts[piece.part] += range(piece.part_row, piece.part_row + piece.rows)
        assert ours == list(range(w.rows))
        for part, rows in enumerate(parts):
            assert rows == list(range(prod(w.part_shape(part)) // w.columns))


def test_qkv_takes_heads_group_by_group_with_a_head_size_of_its_own():
    qkv = weight("linear_qkv.weight", "preset=tiny-dense", "head_dim=32")
    q, k, v = range(3)  # 4 query heads in 2 groups
    assert [(p.part, p.part_row, p.row, p.rows) for p in qkv.pieces()] == [
        (q, 0, 0, 64),
        (k, 0, 64, 32),
        (v, 0, 96, 32),
        (q, 64, 128, 64),
        (k, 32, 192, 32),
        (v, 32, 224, 32),
    ]


def test_all_gates_come_before_all_ups():
    fc1 = weight("experts.linear_fc1.weight", "preset=tiny-moe")
    assert [fc1.part_name(p.part, (3, 7)) for p in fc1.pieces()] == [
        "model.layers.3.mlp.experts.7.gate_proj.weight",
        "model.layers.3.mlp.experts.7.up_proj.weight",
    ]


@pytest.mark.parametrize("preset", ["tiny-dense", "tiny-moe"])
def test_in_order_has_each_tensor_once_and_layers_in_a_row(preset):
    of = model(f"preset={preset}")
    order = [(w.names[0], index) for w, index in in_order(of)]
    assert len(set(order)) == len(order)
    assert set(order) == {(w.names[0], index) for w in weights(of) for index in w.indices()}
    layers = [index[0] for _, index in order if index]
    assert layers == sorted(layers)
    assert order[0][0] == "embedding.word_embeddings.weight"
    assert order[-1][0].startswith(("decoder.final_layernorm", "output_layer"))


_FC1 = "decoder.layers.mlp.linear_fc1.weight"
_EXPERTS = "decoder.layers.mlp.experts.experts.linear_fc1.weight"


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("output_layer.weight", ("output_layer.weight", None, None)),
        ("decoder.layers.mlp.router.weight", ("decoder.layers.mlp.router.weight", None, None)),
        ("decoder.layers.12.mlp.router.weight", ("decoder.layers.mlp.router.weight", 12, None)),
        (_EXPERTS, (_EXPERTS, None, None)),
        ("decoder.layers.3.mlp.experts.experts.linear_fc1.weight", (_EXPERTS, 3, None)),
        ("decoder.layers.3.mlp.experts.linear_fc1.weight17", (_EXPERTS, 3, 17)),
        ("decoder.layers.3.mlp.experts.experts.linear_fc1.17.weight", (_EXPERTS, 3, 17)),
        ("decoder.layers.3.mlp.experts.experts.17.linear_fc1.weight", (_EXPERTS, 3, 17)),
        ("decoder.layers.3.mlp.experts.local_experts.17.linear_fc1.weight", (_EXPERTS, 3, 17)),
        ("decoder.layers.mlp.experts.local_experts.17.linear_fc1.weight", (_EXPERTS, None, 17)),
        ("decoder.layers.mlp.linear_fc1.weight", (_FC1, None, None)),
    ],
)  # fmt: skip
def test_layers_and_experts_are_found_in_names_of_every_kind(key, place):
    assert locate(key) == place


def test_a_norm_has_the_name_of_the_linear_that_transformer_engine_fuses_it_into():
    def names(preset):
        table = weights(model(f"preset={preset}"))
        return {w.parts[0].split(".")[-2]: w.names[1:] for w in table if "layernorm" in w.parts[0]}

    fused_qkv = ("decoder.layers.self_attention.linear_qkv.layer_norm_weight",)
    fused_fc1 = ("decoder.layers.mlp.linear_fc1.layer_norm_weight",)
    assert names("tiny-dense") == {
        "input_layernorm": fused_qkv,
        "post_attention_layernorm": fused_fc1,
    }
    assert names("tiny-moe") == {"input_layernorm": fused_qkv, "post_attention_layernorm": ()}
