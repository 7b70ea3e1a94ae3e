"""A model is named by its size, its files, or as the hub calls it, and all give the same one."""

import json

import pytest

from megatron_qwen3.config import ConfigError
from megatron_qwen3.named_model import named_model

FIELDS = {  # of Qwen3-0.6B's config.json, as it is published
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_query_groups", "vocab_size")


def sizes(model):
    return [getattr(model, name) for name in SIZES]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With that file; it is the hub's Some/Small, too."""
    (tmp_path / "config.json").write_text(json.dumps(FIELDS))
    snapshot = tmp_path / "models--Some--Small" / "snapshots" / "aaa"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(FIELDS))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "name", ["0.6b", "0.6B", "qwen3-0.6b", "Qwen/Qwen3-0.6B", "Qwen3-0.6B-Base"]
)
def test_sizes_and_names_of_qwens_are_known_without_files(name, folder):
    assert sizes(named_model(name)) == [28, 1024, 3072, 8, 151936]


def test_files_folders_and_names_of_the_hub_are_read(folder, tmp_path):
    expected = sizes(named_model("0.6b"))
    for name in (str(folder), str(folder / "config.json"), "Some/Small"):
        assert sizes(named_model(name)) == expected
    (tmp_path / "x.toml").write_text('[model]\npreset = "qwen3-0.6b"\n')
    assert sizes(named_model(str(tmp_path / "x.toml"))) == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("9b", "--model 9b is neither a size (0.6b, "),
        ("qwen3-235b-a22", "did you mean qwen3-235b-a22b?"),
        ("Some/Other", "hf download Some/Other config.json --local-dir FOLDER"),
        ("gone.toml", "gone.toml"),
    ],
)
def test_what_is_none_is_told_in_one_line(name, said, folder):
    with pytest.raises(ConfigError) as told:
        named_model(name)
    assert said in str(told.value) and "\n" not in str(told.value)
