"""A model with YaRN goes from Hugging Face's format to ours and back, and computes the same."""

import json

import pytest
import torch
import transformers
from ranks import run_ranks
from safetensors.torch import load_file
from test_convert import compare_with, their_logits
from theirs import randomize

from megatron_qwen3.cli import convert_checkpoint
from megatron_qwen3.config import load
from megatron_qwen3.convert import hf_config
from megatron_qwen3.convert.dcp import Checkpoint
from megatron_qwen3.settings_rope import RopeConfig

YARN = RopeConfig(yarn_factor=4.0, yarn_original_length=16, yarn_attention_factor=1.3)
DCA = RopeConfig(dca_chunk_size=32, dca_local_size=16, dca_scale=1.1)


@pytest.fixture(scope="module", params=["tiny-dense", "tiny-moe"])
def source(request, tmp_path_factory):
    """As transformers 5 writes it: without fields that 4 reads."""
    folder = tmp_path_factory.mktemp("hf")
    model = load([], [f"model.preset={request.param}", "train.steps=1"]).model
    hf_config.write_config(folder, model, YARN, 4096, "float32", {})
    config = transformers.AutoConfig.from_pretrained(folder)
    network = transformers.AutoModelForCausalLM.from_config(config)
    randomize(network)
    network.save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text())
    assert "rope_scaling" not in fields and "rope_theta" not in fields
    return folder


def convert(*arguments):
    assert convert_checkpoint.main([str(argument) for argument in arguments]) == 0


def rope_of(folder):
    return transformers.AutoConfig.from_pretrained(folder).rope_parameters


def test_yarn_comes_and_goes_with_all_its_bits(tmp_path, source):
    convert("from-hf", source, tmp_path / "ours")
    config = Checkpoint(tmp_path / "ours").config
    assert (config.rope, config.data.sequence_length) == (YARN, 64)
    convert("to-hf", tmp_path / "ours", tmp_path / "out")
    assert rope_of(tmp_path / "out") == rope_of(source)
    before, after = (load_file(f / "model.safetensors") for f in (source, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    expected_BSV = their_logits(source, "fp32")
    assert torch.equal(their_logits(tmp_path / "out", "fp32"), expected_BSV)
    (result,) = run_ranks(compare_with, 1, expected_BSV, source, tmp_path / "ours", "fp32")
    assert result.agree and result.spread > 0.3 and result.largest_difference < 1e-4


def test_transformers_4_would_read_the_same(tmp_path, source):
    """Of a file it knows rope_theta and rope_scaling alone; 5 given no more reads as 5 does."""
    convert("from-hf", source, tmp_path / "ours")
    convert("to-hf", tmp_path / "ours", tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    fields = json.loads(path.read_text())
    assert fields["rope_theta"] == 1e6 and fields["max_position_embeddings"] == 64
    del fields["rope_parameters"]
    path.write_text(json.dumps(fields))
    assert rope_of(tmp_path / "out") == rope_of(source)


def test_verify_tells_yarn_from_plain_positions(tmp_path, source):
    convert("from-hf", source, tmp_path / "ours")
    plain = ["rope.yarn_factor=1", "rope.yarn_original_length=0", "rope.yarn_attention_factor=0"]
    convert("to-hf", tmp_path / "ours", tmp_path / "out", *plain)
    assert rope_of(tmp_path / "out") == {"rope_type": "default", "rope_theta": 1e6}
    others_BSV = their_logits(tmp_path / "out", "fp32")
    (result,) = run_ranks(compare_with, 1, others_BSV, tmp_path / "out", tmp_path / "ours", "fp32")
    assert not result.agree and result.largest_difference > 0.1
    assert set(result.rope_changes) == {
        "yarn_factor 1.0 → 4.0",
        "yarn_original_length 0 → 16",
        "yarn_attention_factor 0.0 → 1.3",
    }


def plain_folder(folder):
    model = load([], ["model.preset=tiny-dense", "train.steps=1"]).model
    folder.mkdir()
    hf_config.write_config(folder, model, RopeConfig(), 4096, "float32", {})
    network = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(folder)
    )
    randomize(network)
    network.save_pretrained(folder)


def test_chunks_stand_beside_config_json_and_come_back_only_where_asked_for(tmp_path, capsys):
    plain_folder(tmp_path / "plain")
    convert("from-hf", tmp_path / "plain", tmp_path / "ours")
    chunks = [f"rope.{name}={getattr(DCA, name)}" for name in ("dca_chunk_size", "dca_local_size")]
    scale = f"rope.dca_scale={DCA.dca_scale}"
    convert("to-hf", tmp_path / "ours", tmp_path / "out", "--dca-length", 128, *chunks, scale)
    told = capsys.readouterr().out
    assert "config_1m.json: Dual Chunk Attention for 128 tokens" in told
    assert "original_max_position_embeddings = 47 they make rope.dca_scale = 1.1 for" in told
    convert("inspect", tmp_path / "out")
    assert "from-hf --dca: Dual Chunk Attention: chunk_size 32," in capsys.readouterr().out
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    long = json.loads((tmp_path / "out" / "config_1m.json").read_text())
    assert "dual_chunk_attention_config" not in fields
    assert long["dual_chunk_attention_config"]["chunk_size"] == 32
    assert long["max_position_embeddings"] == 128

    convert("from-hf", tmp_path / "out", tmp_path / "without")
    assert Checkpoint(tmp_path / "without").config.rope == RopeConfig()
    assert "config_1m.json: Dual Chunk Attention is left out; --dca" in capsys.readouterr().out
    convert("from-hf", tmp_path / "out", tmp_path / "with", "--dca")
    rope = Checkpoint(tmp_path / "with").config.rope
    assert (rope.dca_chunk_size, rope.dca_local_size, rope.dca_rule) == (32, 16, "code")
    assert rope.dca_scale == pytest.approx(1.1, abs=1e-3)  # of 128 and 47 tokens
    assert "the length factor of the longest text for all texts" in capsys.readouterr().out
    convert("inspect", tmp_path / "with")
    assert "Dual Chunk Attention: chunk_size 32, local_size 16" in capsys.readouterr().out

    expected_BSV = their_logits(tmp_path / "out", "fp32")
    arguments = expected_BSV, tmp_path / "out", tmp_path / "with", "fp32"
    (result,) = run_ranks(compare_with, 1, *arguments)
    assert result.agree and result.without_dca


def test_what_servers_cannot_run_is_left_out_or_refused_where_it_is_asked_for(tmp_path, capsys):
    plain_folder(tmp_path / "plain")
    convert("from-hf", tmp_path / "plain", tmp_path / "ours")
    paper = ["rope.dca_chunk_size=32", "rope.dca_local_size=16", "rope.dca_rule=paper"]
    convert("to-hf", tmp_path / "ours", tmp_path / "out", *paper)
    assert "config_1m.json is left out: rope.dca_rule" in capsys.readouterr().out
    assert not (tmp_path / "out" / "config_1m.json").exists()
    command = ["to-hf", str(tmp_path / "ours"), str(tmp_path / "no"), *paper, "--dca-length", "99"]
    assert convert_checkpoint.main(command) == 2
    assert "config_1m.json cannot be written: rope.dca_rule" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    command = ["to-hf", str(tmp_path / "ours"), str(tmp_path / "no"), "optim.lr=1"]
    assert convert_checkpoint.main(command) == 2
    assert "optim.lr=1 is no setting of [rope]" in capsys.readouterr().err
