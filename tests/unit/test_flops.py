"""Closed forms of size and work, against the released checkpoints and a count weight by weight."""

import dataclasses
import math

import pytest

from megatron_qwen3.model.flops import active_parameter_count, flops_per_token, parameter_count
from megatron_qwen3.presets import PRESETS
from megatron_qwen3.settings import ModelConfig

# Elements in the released safetensors files; a tied lm_head counts once.
RELEASED = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
}


def model(name):
    return ModelConfig(preset=name, **PRESETS[name])


@pytest.mark.parametrize("name", RELEASED)
def test_parameter_counts_equal_the_released_checkpoints(name):
    assert parameter_count(model(name)) == RELEASED[name]


def weight_shapes(m):
    """Every weight by its shape, as a Hugging Face checkpoint lists them."""
    shapes = [(m.vocab_size, m.hidden_size)] * (1 if m.tie_embeddings else 2) + [(m.hidden_size,)]
    for _ in range(m.num_layers):
        shapes += [(m.num_attention_heads * m.head_dim, m.hidden_size)] * 2  # q; o is its transpose
        shapes += [(m.num_query_groups * m.head_dim, m.hidden_size)] * 2  # k, v
        shapes += [(m.head_dim,)] * 2 + [(m.hidden_size,)] * 2
        if m.num_experts:
            shapes += [(m.num_experts, m.hidden_size)]
            shapes += [(m.expert_ffn_hidden_size, m.hidden_size)] * 3 * m.num_experts
        else:
            shapes += [(m.ffn_hidden_size, m.hidden_size)] * 3
    return shapes


@pytest.mark.parametrize("name", ["tiny-dense", "tiny-moe", "qwen3-30b-a3b"])
def test_parameter_count_is_the_sum_over_all_weights(name):
    assert parameter_count(model(name)) == sum(map(math.prod, weight_shapes(model(name))))


@pytest.mark.parametrize("name", ["tiny-dense", "tiny-moe", "qwen3-0.6b"])
def test_a_reward_model_has_one_row_in_place_of_the_output_layer(name):
    language_model, (embedding, *_) = model(name), weight_shapes(model(name))
    of = dataclasses.replace(language_model, head="scalar")
    rows = 1 if language_model.tie_embeddings else 1 - embedding[0]
    more = rows * of.hidden_size
    assert parameter_count(of) == parameter_count(language_model) + more
    fewer = 6 * of.hidden_size * (of.vocab_size - 1)
    assert flops_per_token(of, 64) == flops_per_token(language_model, 64) - fewer


@pytest.mark.parametrize(
    ("name", "billions"), [("qwen3-30b-a3b", 3.353), ("qwen3-235b-a22b", 22.191)]
)
def test_active_parameters_equal_the_published_ones(name, billions):
    assert round(active_parameter_count(model(name)) / 1e9, 3) == billions


def test_every_parameter_of_a_dense_model_is_active():
    dense = model("qwen3-8b")
    assert active_parameter_count(dense) == parameter_count(dense)


@pytest.mark.parametrize(
    ("name", "gflop"), [("qwen3-8b", 49.03), ("qwen3-30b-a3b", 23.01), ("qwen3-235b-a22b", 148.03)]
)
def test_work_per_token_agrees_with_the_published_rows(name, gflop):
    assert flops_per_token(model(name), 4096) / 1e9 == pytest.approx(gflop, rel=2e-3)


def test_work_does_not_depend_on_idle_experts_and_grows_linearly_with_the_sequence():
    sparse = model("tiny-moe")
    assert flops_per_token(dataclasses.replace(sparse, num_experts=64), 128) == flops_per_token(
        sparse, 128
    )
    step = flops_per_token(sparse, 256) - flops_per_token(sparse, 128)
    assert step == 6 * 128 * sparse.num_layers * sparse.num_attention_heads * sparse.head_dim
