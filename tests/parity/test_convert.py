"""HF → ours → HF keeps every bit, whatever layout is in between, and logits stay transformers'."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from ranks import RankError, run_ranks
from safetensors.torch import load_file
from torch.distributed import checkpoint as dcp

from megatron_qwen3.config import load, to_toml
from megatron_qwen3.convert import dcp_writer, hf_config, reference, stream
from megatron_qwen3.convert.dcp import Checkpoint
from megatron_qwen3.convert.mapping import weights
from megatron_qwen3.convert.verify import POSITIONS, SEQUENCES, compare, logits, model_of
from megatron_qwen3.generate.load import ModelSource as GeneratorSource
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.settings_rope import RopeConfig
from megatron_qwen3.storage import manifest
from megatron_qwen3.training import checkpoint, saver
from megatron_qwen3.training.engine import Engine

# The tiny presets have heads * head_dim = 2 * hidden; the last two have no such gap.
MODELS = {
    "dense-tied": ("model.preset=tiny-dense",),
    "dense-untied": ("model.preset=tiny-dense", "model.tie_embeddings=false"),
    "dense-8-groups": (
        "model.preset=tiny-dense", "model.num_attention_heads=16", "model.num_query_groups=8"),
    "moe": ("model.preset=tiny-moe",),
    "moe-tied": ("model.preset=tiny-moe", "model.tie_embeddings=true"),
    "moe-4-groups": (
        "model.preset=tiny-moe", "model.num_attention_heads=8", "model.num_query_groups=4"),
    "dense-plain-heads": ("model.preset=tiny-dense", "model.head_dim=16"),
    "dense-plain-theta-10000": ("model.preset=tiny-dense", "model.rope_theta=1e4"),
}  # fmt: skip
TP, PP, VPP = "parallel.tensor", "parallel.pipeline", "parallel.virtual_pipeline"
EP, ETP = "parallel.expert", "parallel.expert_tensor"
DENSE_LAYOUTS = {
    "dp2": (2, ()),
    "tp2-pp2": (4, (f"{TP}=2", f"{PP}=2")),
    "pp2-vpp2": (2, (f"{PP}=2", f"{VPP}=2")),
    "tp4": (4, (f"{TP}=4",)),
}
SPARSE_LAYOUTS = {
    "one": (1, ()),
    "ep4": (4, (f"{EP}=4",)),
    "tp4-ep2": (4, (f"{TP}=4", f"{EP}=2")),
    "tp2-etp2": (2, (f"{TP}=2", f"{ETP}=2")),
    "tp2-pp2-ep2": (4, (f"{TP}=2", f"{PP}=2", f"{EP}=2")),
    "pp2-vpp2": (2, (f"{PP}=2", f"{VPP}=2")),
}
QUICK = {"dense-tied": {"tp2-pp2"}, "moe-4-groups": {"ep4", "tp4-ep2"}}


def settings(model, precision="fp32", *more):
    return load([], ["train.steps=1", f"train.precision={precision}", *MODELS[model], *more])


def transformers_model(folder, name, dtype):
    """A model that transformers made and saved, with weights that show in its logits."""
    of = settings(name).model
    folder.mkdir()
    hf_config.write_config(folder, of, RopeConfig(), 4096, str(dtype).removeprefix("torch."), {})
    torch.manual_seed(3)
    config = transformers.AutoConfig.from_pretrained(folder)
    network = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.12 * noise)
    network.save_pretrained(folder)
    return folder


def tensors_of(folder):
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def rows_of(checkpoint_, weight, index, first, count):
    rows = np.empty((count, checkpoint_.row_bytes(weight)), np.uint8)
    checkpoint_.read_rows(weight, index, first, rows)
    return rows


def assert_same_bits(actual, expected):
    actual, expected = tensors_of(actual), tensors_of(expected)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory):
    made = {}

    def make(name, dtype=torch.float32):
        if (name, dtype) not in made:
            folder = tmp_path_factory.mktemp("hf") / name
            made[name, dtype] = transformers_model(folder, name, dtype)
        return made[name, dtype]

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_hf_to_ours_to_hf_keeps_every_bit(tmp_path, hf_folder, name, dtype):
    source = hf_folder(name, dtype)
    stream.from_hf(source, tmp_path / "ours")
    model = Checkpoint(tmp_path / "ours").config.model
    assert replace(model, preset="") == replace(settings(name).model, preset="")
    stream.to_hf(tmp_path / "ours", tmp_path / "out", shard_bytes=200_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert_same_bits(tmp_path / "out", source)


def through(config, path):
    """Load the weights into this layout, and save them from it."""
    engine = Engine(config, start(config))
    checkpoint.check_same_model(config, path)
    checkpoint.load_weights(engine, path)
    saver.save(engine, config, 1)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(
            name, layout, marks=[] if layout in QUICK.get(name, ()) else [pytest.mark.slow]
        )
        for names, layouts in (
            (("dense-tied", "dense-8-groups"), DENSE_LAYOUTS),
            (("moe-4-groups", "moe-tied"), SPARSE_LAYOUTS),
        )
        for name in names
        for layout in layouts
        if not (name in ("moe-tied", "dense-tied") and "tp4" in layout)  # they have 2 groups
    ],
)
def test_every_layout_reads_and_writes_the_same_bits(
    tmp_path, hf_folder, monkeypatch, name, layout
):
    # Chunks so small that matrices and groups of experts are cut, as those of large models are.
    monkeypatch.setattr(dcp_writer, "CHUNK_BYTES", 20_000)
    source = hf_folder(name)
    ranks, parallel = (DENSE_LAYOUTS | SPARSE_LAYOUTS)[layout]
    stream.from_hf(source, tmp_path / "ours")
    config = settings(name, "fp32", f"run.dir={tmp_path}", *parallel)
    run_ranks(through, ranks, config, tmp_path / "ours")
    stream.to_hf(checkpoint.find(str(config.run_dir)), tmp_path / "out")
    assert_same_bits(tmp_path / "out", source)


@pytest.mark.parametrize("name", ["dense-tied", "moe-4-groups"])
def test_bf16_weights_pass_through_a_run_unchanged(tmp_path, hf_folder, name):
    source = hf_folder(name, torch.bfloat16)
    stream.from_hf(source, tmp_path / "ours")
    config = settings(name, "bf16", f"run.dir={tmp_path}", f"{PP}=2")
    run_ranks(through, 2, config, tmp_path / "ours")
    stream.to_hf(checkpoint.find(str(config.run_dir)), tmp_path / "out")
    assert_same_bits(tmp_path / "out", source)


def ids_to_compare(folder):
    """[B, S], those that `compare` takes."""
    random = torch.Generator().manual_seed(0)
    return torch.randint(model_of(folder).vocab_size, (SEQUENCES, POSITIONS), generator=random)


@torch.no_grad()
def their_logits(folder, precision):
    """Transformers' own, as the process that `compare` starts would give them."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    network = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa"
    )
    return network.eval()(ids_to_compare(folder)).logits.float()


def compare_with(expected_BSV, *arguments):
    """`compare` on a rank, spared a process that imports transformers anew."""
    reference.logits = lambda *_: expected_BSV
    return compare(*arguments)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("dense-untied", "fp32"),
        ("moe-4-groups", "fp32"),
        ("moe-4-groups", "bf16"),
        pytest.param("dense-tied", "fp32", marks=pytest.mark.slow),
        pytest.param("dense-tied", "bf16", marks=pytest.mark.slow),
        pytest.param("dense-8-groups", "fp32", marks=pytest.mark.slow),
        pytest.param("dense-8-groups", "bf16", marks=pytest.mark.slow),
        pytest.param("moe-tied", "fp32", marks=pytest.mark.slow),
        pytest.param("dense-plain-theta-10000", "fp32", marks=pytest.mark.slow),
    ],
)
def test_logits_of_a_converted_model_equal_transformers(tmp_path, hf_folder, name, precision):
    source = hf_folder(name)
    stream.from_hf(source, tmp_path / "ours")
    expected_BSV = their_logits(source, precision)
    (result,) = run_ranks(compare_with, 1, expected_BSV, source, tmp_path / "ours", precision)
    assert result.agree and result.spread > 0.3
    if precision == "fp32":
        assert result.largest_difference < 1e-5
        assert result.greedy_agreement == 1.0
    else:
        assert result.greedy_agreement > 0.9


def test_verify_tells_one_wrong_head_from_none(tmp_path, hf_folder):
    """Two key heads swapped: the shapes are right, the model is another."""
    source = hf_folder("dense-8-groups")
    stream.from_hf(source, tmp_path / "ours")
    checkpoint_ = Checkpoint(tmp_path / "ours")
    (qkv,) = [w for w in weights(checkpoint_.config.model) if "linear_qkv.w" in w.names[0]]
    keys = [p.row for p in qkv.pieces() if p.part == 1][:2]
    (region,) = checkpoint_._regions[qkv.names[0], (1,)]
    heads = [rows_of(checkpoint_, qkv, (1,), row, 32) for row in keys]
    with region.chunk.path.open("r+b") as file:
        for row, head in zip(keys, reversed(heads), strict=True):
            file.seek(region.chunk.data_start + row * head.shape[1])
            file.write(head.tobytes())
    with pytest.raises(RankError, match="checksum"):
        run_ranks(logits, 1, tmp_path / "ours", ids_to_compare(source), "fp32")
    sealed = manifest.read(tmp_path / "ours")
    manifest.write(tmp_path / "ours", {n: manifest.seal(tmp_path / "ours" / n) for n in sealed})
    (result,) = run_ranks(compare, 1, source, tmp_path / "ours", "fp32")
    assert not result.agree and result.largest_difference > 0.1


def test_names_of_transformer_engine_and_unstacked_layers_are_read(tmp_path, hf_folder):
    """A checkpoint as another program writes it: torch's own writer, other names, no stacking."""
    source = hf_folder("dense-tied")
    stream.from_hf(source, tmp_path / "ours")
    ours = Checkpoint(tmp_path / "ours")
    state = {}
    for weight in weights(ours.config.model):
        for index in weight.indices():
            data = rows_of(ours, weight, index, 0, weight.rows).view("float32")
            key = weight.names[-1].replace("decoder.layers.", f"decoder.layers.{(*index, 0)[0]}.")
            state[key] = torch.from_numpy(data).view(weight.shape)
    assert "decoder.layers.3.mlp.linear_fc1.layer_norm_weight" in state
    other = tmp_path / "other"
    dcp.save(state, checkpoint_id=other, no_dist=True)
    (other / "config.toml").write_text(to_toml(ours.config))
    (other / "metadata.json").write_text("{}")
    stream.to_hf(other, tmp_path / "out")
    assert_same_bits(tmp_path / "out", source)


def test_config_says_the_same_to_transformers_4_and_5(tmp_path, hf_folder):
    source = hf_folder("moe-4-groups")
    stream.from_hf(source, tmp_path / "ours")
    stream.to_hf(tmp_path / "ours", tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["rope_theta"] == fields["rope_parameters"]["rope_theta"] == 1e6
    assert fields["num_experts"] == fields["num_local_experts"] == 8
    assert fields["torch_dtype"] == fields["dtype"] == "float32"
    ours, theirs = (transformers.AutoConfig.from_pretrained(f) for f in (tmp_path / "out", source))
    left_out = {"_name_or_path", "transformers_version", "torch_dtype", "pad_token_id"}
    for name, value in theirs.to_dict().items():
        if name not in left_out:
            assert ours.to_dict()[name] == value, name
    transformers.GenerationConfig.from_pretrained(tmp_path / "out")


def test_a_converted_model_computes_what_the_first_one_did(tmp_path, hf_folder):
    """Both through transformers: the configuration came through, not only the tensors."""
    source = hf_folder("dense-plain-theta-10000")
    stream.from_hf(source, tmp_path / "ours")
    stream.to_hf(tmp_path / "ours", tmp_path / "out")
    assert torch.equal(their_logits(tmp_path / "out", "fp32"), their_logits(source, "fp32"))


@pytest.mark.slow  # the next one finds one, too
def test_verify_finds_a_converted_model_the_same(tmp_path, hf_folder):
    source = hf_folder("moe-4-groups")
    stream.from_hf(source, tmp_path / "ours")
    (result,) = run_ranks(compare, 1, source, tmp_path / "ours", "fp32")
    assert result.agree and result.spread > 0.3 and result.largest_difference < 1e-5
    assert math.isclose(result.cosine, 1.0)


def test_what_another_machine_trained_a_model_with_is_not_asked_for(tmp_path, hf_folder):
    """Layers of Transformer Engine, which is not here, and work in an order of its own."""
    source, ours = hf_folder("moe-4-groups"), tmp_path / "ours"
    stream.from_hf(source, ours)
    settings = load(
        [ours / "config.toml"],
        ["model.kind=te", "train.precision=bf16", "parallel.expert=2", "overlap.experts=true"],
    )
    (ours / "config.toml").write_text(to_toml(settings))
    manifest.write(ours, {name: manifest.seal(ours / name) for name in manifest.read(ours)})
    assert GeneratorSource(ours).config([], 1).model.kind == "auto"
    (result,) = run_ranks(compare, 1, source, ours, "fp32")
    assert result.agree and result.largest_difference < 1e-5
