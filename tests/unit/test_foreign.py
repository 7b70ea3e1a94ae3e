"""Models of strangers: requests of their files are refused, and their numbers are bounded."""

import json
import os
import resource
import struct
import time

import pytest
import torch
from safetensors.torch import save_file

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.convert import hf, hf_config, stream
from megatron_qwen3.convert.mapping import in_order
from megatron_qwen3.settings_rope import RopeConfig

MODEL = load([], ["model.preset=tiny-moe", "model.num_layers=1", "train.steps=1"]).model


@pytest.fixture
def theirs(tmp_path):
    """A small model of Hugging Face's format with a tokenizer."""
    folder = tmp_path / "hf"
    folder.mkdir()
    tensors = {
        weight.part_name(part, index): torch.zeros(weight.part_shape(part))
        for weight, index in in_order(MODEL)
        for part in range(len(weight.parts))
    }
    save_file(tensors, folder / "model.safetensors")
    hf_config.write_config(folder, MODEL, RopeConfig(), 128, "float32", {})
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "generation_config.json").write_text("{}")
    hf.HFFolder(folder)
    return folder


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refusal(folder, out):
    """The message of a conversion, in one line."""
    with pytest.raises(ConfigError) as error:
        stream.from_hf(folder, out)
    assert not out.exists() and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("auto_map", {"AutoModelForCausalLM": "modeling.Model"}),
        ("custom_generate", "someone/loop"),
        ("quantization_config", {"quant_method": "gptq"}),
        ("peft_config", {"default": {}}),
        ("_attn_implementation", "someone/attention"),
        ("attn_implementation", "someone/attention@main:flash"),
        ("_experts_implementation", "kernels-community/moe"),
        ("_attn_implementation_internal", {"": "someone/attention"}),
        ("kernel_config", {"RMSNorm": "someone/norm"}),
        ("text_config", {"inner": [{"auto_map": {"AutoConfig": "x.Y"}}]}),
        ("transformers_weights", "../other.safetensors"),
    ],
)
def test_a_file_that_asks_for_code_or_kernels_is_refused_by_field(
    theirs, tmp_path, file, name, value
):
    change(theirs / file, **{name: value})
    told = refusal(theirs, tmp_path / "out")
    assert file in told and (name in told or "auto_map" in told)


@pytest.mark.parametrize("value", [None, "sdpa", "eager", "flash_attention_2"])
def test_an_attention_of_transformers_own_is_no_reason_to_refuse(theirs, value):
    change(
        theirs / "config.json", _attn_implementation=value, auto_map=None, trust_remote_code=False
    )
    hf.HFFolder(theirs)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "notes"],
)
def test_a_link_that_leaves_the_model_is_refused_and_copied_nowhere(theirs, tmp_path, name):
    private = tmp_path / "private"
    private.write_bytes((theirs / name).read_bytes() if (theirs / name).exists() else b"secret")
    (theirs / name).unlink(missing_ok=True)
    (theirs / name).symlink_to(private)
    assert "leaves the folder" in refusal(theirs, tmp_path / "out")


@pytest.mark.parametrize("place", ["tokenizer/tokenizer.json", "tokenizer"])
def test_a_link_in_a_checkpoints_tokenizer_reaches_no_export(theirs, tmp_path, place):
    stream.from_hf(theirs, tmp_path / "ours")
    private = tmp_path / "private"
    (tmp_path / "ours" / place).rename(private)
    (tmp_path / "ours" / place).symlink_to(private)
    with pytest.raises(ConfigError, match="leaves the folder"):
        stream.to_hf(tmp_path / "ours", tmp_path / "out")
    assert not (tmp_path / "out").exists()


FIELDS = [
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "num_experts", "num_experts_per_tok"),
    *("moe_intermediate_size", "max_position_embeddings"),
]


VALUES = [10**9, 10**18, 10**400, -1, 1.5, 1e999, "9", [], True]


@pytest.mark.parametrize("field", FIELDS)
def test_an_endless_or_senseless_size_is_refused_at_once(theirs, tmp_path, field):
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for value in VALUES:
        change(theirs / "config.json", **{field: value})
        if field == "num_experts":
            change(theirs / "config.json", num_local_experts=value)
        if (field, value) == ("max_position_embeddings", 10**9):
            hf.HFFolder(theirs)  # it says how long texts may be, and makes nothing
        else:
            assert "config.json" in refusal(theirs, tmp_path / "out"), value
    assert time.process_time() - begin < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes


def header_of(path, table, length=None, size=None):
    data = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(data) if length is None else length) + data)
    if size:
        os.truncate(path, size)  # sparse


@pytest.mark.parametrize("length", [6_000_000_000, 1 << 63, 0])
def test_a_header_of_gigabytes_is_refused_before_it_is_read(theirs, tmp_path, length):
    header_of(theirs / "model.safetensors", b"{}", length, 7_000_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "not a safetensors file" in refusal(theirs, tmp_path / "out")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 1 << 66]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        ["F32"],
        None,
    ],
)
def test_an_entry_of_a_header_that_lies_is_refused(theirs, tmp_path, entry):
    header_of(theirs / "model.safetensors", {"model.norm.weight": entry}, size=4096)
    assert "model.safetensors" in refusal(theirs, tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "tokenizer_config.json", "generation_config.json"),
        *("tokenizer.json", "model.safetensors.index.json"),
    ],
)
def test_deep_nesting_is_that_files_fault(theirs, tmp_path, name):
    (theirs / name).write_text('{"a": ' + "[" * 200_000)
    assert name in refusal(theirs, tmp_path / "out")


def test_deep_nesting_in_a_header_is_that_files_fault(theirs, tmp_path):
    header_of(theirs / "model.safetensors", b'{"a": ' + b"[" * 200_000)
    assert "model.safetensors: not a safetensors file" in refusal(theirs, tmp_path / "out")
