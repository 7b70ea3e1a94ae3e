"""Conversion of wrong and damaged files: each is refused by name, none is run."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_qwen3.cli import convert_checkpoint
from megatron_qwen3.cli.commands import installed
from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.convert import hf, hf_config, hf_files, hf_writer, reference, stream, verify
from megatron_qwen3.convert.dcp import Checkpoint
from megatron_qwen3.convert.describe import describe
from megatron_qwen3.convert.mapping import in_order
from megatron_qwen3.generate.load import ModelSource
from megatron_qwen3.settings import ParallelConfig
from megatron_qwen3.settings_rope import RopeConfig
from megatron_qwen3.storage import manifest
from megatron_qwen3.storage.table import read_table
from megatron_qwen3.training.checkpoint import check_same_model, find

ROOT = Path(__file__).parents[2]


def model(preset, *overrides):
    return load([], [f"model.preset={preset}", "train.steps=1", *overrides]).model


def random_hf(folder, of, dtype=torch.bfloat16):
    """An HF folder, its tensors written by the safetensors library."""
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(5)
    tensors = {
        weight.part_name(part, index): torch.randn(weight.part_shape(part), generator=random)
        for weight, index in in_order(of)
        for part in range(len(weight.parts))
    }
    save_file({k: v.to(dtype) for k, v in tensors.items()}, folder / hf.SINGLE_FILE)
    hf_config.write_config(folder, of, RopeConfig(), 4096, str(dtype).removeprefix("torch."), {})
    return folder


@pytest.fixture
def moe(tmp_path):
    return random_hf(tmp_path / "hf", model("tiny-moe"))


@pytest.fixture
def ours(tmp_path, moe):
    stream.from_hf(moe, tmp_path / "ours")
    return tmp_path / "ours"


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(folder, change):
    tensors = load_file(folder / hf.SINGLE_FILE)
    change(tensors)
    save_file(tensors, folder / hf.SINGLE_FILE)


def test_a_converted_checkpoint_is_found_as_a_run_finds_it(ours):
    assert find(str(ours)) == ours
    config = Checkpoint(ours).config
    assert config.model == model("tiny-moe")  # the preset was recognised
    assert config.train.precision == "bf16"
    check_same_model(config, ours)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_sliding_window", True),
        ("attention_bias", True),
        ("hidden_act", "gelu"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 5e6}),
        ("norm_topk_prob", False),
        ("decoder_sparse_step", 2),
        ("mlp_only_layers", [1]),
        ("shared_expert_intermediate_size", 64),
        ("num_local_experts", 4),
        ("quantization_config", {"quant_method": "fp8"}),
        ("layer_types", ["sliding_attention"] * 4),
        ("layer_types", [["full_attention"]]),
        ("layer_types", 4),
        ("max_position_embeddings", "long"),
        ("max_position_embeddings", -4096),
        ("architectures", ["Qwen3MoeForSequenceClassification"]),
        ("model_type", "qwen2_moe"),
        ("model_type", ["qwen3_moe"]),
        ("hidden_size", "64"),
        ("head_dim", 31),
        ("num_key_value_heads", 3),
    ],
)
def test_a_config_that_is_not_qwen3s_is_refused_by_file_and_field(tmp_path, moe, field, value):
    change_config(moe, **{field: value})
    ours_for = {"num_key_value_heads": "num_query_groups"}.get(field, field)
    with pytest.raises(ConfigError, match=rf"config\.json: .*{ours_for}"):
        stream.from_hf(moe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", ["rope_theta", "num_hidden_layers", "head_dim", "rms_norm_eps"])
def test_a_field_is_never_guessed(moe, field):
    path = moe / "config.json"
    config = json.loads(path.read_text())
    config.pop("rope_parameters")
    config.pop(field)
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"config.json: .*{field}.* is missing"):
        hf.HFFolder(moe)


@pytest.mark.parametrize("missing", ["config.json", hf.SINGLE_FILE])
def test_a_folder_that_is_no_model_is_refused(tmp_path, moe, missing):
    (moe / missing).unlink()
    with pytest.raises(ConfigError, match=missing):
        stream.from_hf(moe, tmp_path / "out")


@pytest.mark.parametrize("keep_bytes", [4, 100, -1])
def test_a_truncated_safetensors_file_is_refused_by_name(tmp_path, moe, keep_bytes):
    path = moe / hf.SINGLE_FILE
    os.truncate(path, keep_bytes if keep_bytes > 0 else path.stat().st_size + keep_bytes)
    with pytest.raises(ConfigError, match=f"{hf.SINGLE_FILE}: .*truncated"):
        stream.from_hf(moe, tmp_path / "out")


def test_tensors_that_share_bytes_are_refused(tmp_path, moe):
    path = moe / hf.SINGLE_FILE
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + size])
    names = [f"model.layers.{layer}.input_layernorm.weight" for layer in (1, 2)]
    table[names[0]]["data_offsets"] = table[names[1]]["data_offsets"]
    header = json.dumps(table).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    with pytest.raises(ConfigError, match=f"{hf.SINGLE_FILE}: damaged, its tensors overlap"):
        stream.from_hf(moe, tmp_path / "out")


_EXPERT = "model.layers.2.mlp.experts.5.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(_EXPERT), f"{_EXPERT} is missing"),
        (lambda t: t.update({"model.layers.4.x": torch.ones(2)}), "4.x is unexpected"),
        (lambda t: t.update({_EXPERT: torch.ones(3, 5)}), rf"{_EXPERT} has shape \(3, 5\)"),
        (lambda t: t.update({_EXPERT: t[_EXPERT].to(torch.uint8)}), f"{_EXPERT} is U8"),
        (lambda t: t.update({_EXPERT: t[_EXPERT].half()}), f"{_EXPERT} is F16"),
        (
            lambda t: t.update({_EXPERT: t[_EXPERT].float()}),
            f"layers.0.*gate_proj.weight is BF16, .*{_EXPERT} is F32, .*--dtype",
        ),
    ],
)
def test_a_missing_unexpected_or_misshapen_tensor_is_named(tmp_path, moe, change, says):
    change_tensors(moe, change)
    with pytest.raises(ConfigError, match=says):
        stream.from_hf(moe, tmp_path / "out")


def test_a_tied_models_copy_of_the_head_must_be_the_embedding(tmp_path):
    folder = random_hf(tmp_path / "hf", model("tiny-dense"))
    copy = load_file(folder / hf.SINGLE_FILE)["model.embed_tokens.weight"].clone()
    change_tensors(folder, lambda t: t.update({"lm_head.weight": copy}))
    stream.from_hf(folder, tmp_path / "ours")
    copy[-1, -1] += 1
    change_tensors(folder, lambda t: t.update({"lm_head.weight": copy}))
    with pytest.raises(ConfigError, match="lm_head.weight is not model.embed_tokens.weight"):
        stream.from_hf(folder, tmp_path / "again")


def test_an_index_that_leaves_its_folder_is_refused(moe):
    content = {"weight_map": {"lm_head.weight": "../hf/model.safetensors"}}
    (moe / hf.INDEX_FILE).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="not an index of files beside it"):
        hf.HFFolder(moe)


class Malice:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_malicious_metadata_file_is_refused_and_not_run(tmp_path, ours):
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Malice(mark)))
    assert mark.exists()  # so would it do
    mark.unlink()
    (ours / ".metadata").write_bytes(pickle.dumps(Malice(mark)))
    for read in (read_table, Checkpoint, describe):
        with pytest.raises(ConfigError, match=r"\.metadata: .*refused: it names pathlib"):
            read(ours)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["torch.load", "torch.Size.__init__", "builtins.eval"])
def test_metadata_may_name_nothing_but_its_own_classes(ours, name):
    module, _, attribute = name.partition(".")
    (ours / ".metadata").write_bytes(
        b"\x80\x04" + b"".join(b"\x8c" + bytes([len(n)]) + n.encode() for n in (module, attribute))
        + b"\x93."
    )  # fmt: skip
    with pytest.raises(ConfigError, match="refused"):
        read_table(ours)


def test_a_malicious_common_file_is_refused_and_not_run(tmp_path, ours):
    read_table(ours)
    torch.save({"step": Malice(tmp_path / "ran")}, ours / "common.pt")
    with pytest.raises(ConfigError, match=r"common\.pt: refused"):
        read_table(ours)
    assert not (tmp_path / "ran").exists()


def test_a_malicious_object_between_the_tensors_is_refused_and_not_run(tmp_path, ours, monkeypatch):
    add = stream.CheckpointWriter.add_object
    malice = Malice(tmp_path / "ran")
    monkeypatch.setattr(stream.CheckpointWriter, "add_object", lambda *a: add(*a[:-1], [malice]))
    stream.from_hf(tmp_path / "hf", tmp_path / "bad")
    with pytest.raises(ConfigError, match=r"distcp: refused"):
        read_table(tmp_path / "bad")
    assert not (tmp_path / "ran").exists()


def test_a_truncated_checkpoint_is_refused_and_leaves_nothing(tmp_path, ours):
    path = ours / "__3_0.distcp"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ConfigError, match="__3_0.distcp: (damaged|truncated)"):
        stream.to_hf(ours, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("out")] == []


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("num_layers = 5", "input_layernorm.weight has shape"),
        ("num_experts = 4", "router.weight has shape"),
        ("tie_embeddings = true", "output_layer.weight is unexpected"),
    ],
)
def test_a_checkpoint_of_another_shape_than_its_settings_is_refused(ours, setting, says):
    name = setting.partition(" ")[0]
    lines = (ours / "config.toml").read_text().splitlines()
    changed = [setting if line.startswith(name + " ") else line for line in lines]
    (ours / "config.toml").write_text("\n".join(changed))
    with pytest.raises(ConfigError, match=says):
        Checkpoint(ours)


def test_a_missing_layer_of_a_checkpoint_is_named(ours):
    metadata = pickle.loads((ours / ".metadata").read_bytes())
    chunks = metadata.state_dict_metadata["decoder.layers.mlp.experts.experts.linear_fc2.weight"]
    chunks.chunks.pop(2)
    (ours / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ConfigError, match="linear_fc2.weight of layer 2, expert 0, is missing"):
        Checkpoint(ours)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("direction", ["from_hf", "to_hf"])
def test_an_interrupted_conversion_leaves_nothing(tmp_path, ours, monkeypatch, direction, error):
    def interrupted(*_):
        raise error("in between")

    monkeypatch.setattr(hf_writer, "write_exactly", interrupted)
    source = tmp_path / ("hf" if direction == "from_hf" else "ours")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match="in between"):
        getattr(stream, direction)(source, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_killed_conversion_leaves_nothing_that_looks_finished(tmp_path, moe):
    script = (
        "import sys, time; from megatron_qwen3.convert import hf_writer, stream\n"
        "hf_writer.write_exactly = lambda *_: time.sleep(60)\n"
        f"stream.from_hf(stream.Path({str(moe)!r}), stream.Path({str(tmp_path / 'out')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    while not (written := list(tmp_path.glob("out.*.partial/__model_0.distcp"))):
        assert process.poll() is None
        time.sleep(0.05)
    beside = written[0].parent
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="neither a checkpoint nor a run folder"):
        find(str(beside))
    stream.from_hf(moe, tmp_path / "out")  # what is left is no obstacle


def test_two_conversions_into_one_folder_leave_a_whole_one_and_what_the_user_has(
    tmp_path, moe, monkeypatch
):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").touch()
    both, run = threading.Barrier(2), stream._run

    def wait_for_the_other(*arguments):
        both.wait(60)
        run(*arguments)
        both.wait(60)

    monkeypatch.setattr(stream, "_run", wait_for_the_other)
    with ThreadPoolExecutor() as pool:
        ends = [pool.submit(stream.from_hf, moe, tmp_path / "out") for _ in range(2)]
    errors = [end.exception() for end in ends]
    assert [type(error) for error in errors if error] == [ConfigError]
    assert "choose another name" in str(errors[0] or errors[1])
    assert manifest.faults(tmp_path / "out", share=(0, 1)) == []
    assert sorted(p.name for p in tmp_path.glob("out*")) == ["out", "out.partial"]
    assert (tmp_path / "out.partial" / "mine").exists()


def test_nothing_is_overwritten(tmp_path, moe):
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="out exists; remove it"):
        stream.from_hf(moe, tmp_path / "out")


def test_the_tokenizer_goes_along_and_code_does_not(tmp_path, moe):
    for name in ("tokenizer.json", "chat_template.jinja", "modeling_qwen3.py"):
        (moe / name).write_text('{"added_tokens": [{"id": 500, "content": "<|endoftext|>"}]}')
    stream.from_hf(moe, tmp_path / "ours")
    assert stream.to_hf(tmp_path / "ours", tmp_path / "out")
    out = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= out
    assert "modeling_qwen3.py" not in out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 500


@pytest.mark.parametrize("own", [True, False])
def test_a_chat_template_is_added_where_the_tokenizer_has_none(tmp_path, moe, own):
    added = [{"id": 500, "content": "<|endoftext|>"}, {"id": 501, "content": "<|im_end|>"}]
    (moe / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (moe / "tokenizer_config.json").write_text("{}")
    if own:
        (moe / "chat_template.jinja").write_text("its own")
    stream.from_hf(moe, tmp_path / "ours")
    stream.to_hf(tmp_path / "ours", tmp_path / "out")
    template = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert template == "its own" if own else "<|im_start|>" in template


def test_a_chat_model_keeps_its_end_of_turn(tmp_path, moe):
    (moe / "tokenizer.json").write_text('{"added_tokens": []}')
    (moe / "generation_config.json").write_text('{"eos_token_id": [501, 500], "top_k": 20}')
    stream.from_hf(moe, tmp_path / "ours")
    stream.to_hf(tmp_path / "ours", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 501
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["top_k"] == 20


def shard(folder, name, *, index):
    """The folder's tensors under another name, and with an index that says so."""
    (folder / hf.SINGLE_FILE).rename(folder / name)
    if index:
        listed = dict.fromkeys(load_file(folder / name), name)
        (folder / hf.INDEX_FILE).write_text(json.dumps({"weight_map": listed}))


@pytest.mark.parametrize(
    ("beside", "index"),
    [
        (hf.SINGLE_FILE, True),
        ("model-00002-of-00002.safetensors", True),
        ("model-00002-of-00002.safetensors", False),
        ("pytorch_model.bin", True),
        ("pytorch_model-00001-of-00002.bin", False),
        ("adapter_config.json", False),
    ],
)
def test_two_sets_of_weights_in_a_folder_are_refused_naming_both(tmp_path, moe, beside, index):
    if index:
        shard(moe, "model-00001-of-00001.safetensors", index=True)
    other = random_hf(tmp_path / "other", model("tiny-moe"))
    (other / hf.SINGLE_FILE).rename(moe / beside)
    said_by = hf.INDEX_FILE if index else hf.SINGLE_FILE
    with pytest.raises(ConfigError, match=f"hf: {beside} lies beside {said_by}"):
        stream.from_hf(moe, tmp_path / "out")


def test_an_index_that_names_a_file_that_is_not_there_is_refused_naming_both(tmp_path, moe):
    shard(moe, "model-00001-of-00001.safetensors", index=True)
    (moe / "model-00001-of-00001.safetensors").unlink()
    says = f"{hf.INDEX_FILE}: lists model-00001-of-00001.safetensors, not in the folder"
    with pytest.raises(ConfigError, match=says):
        stream.from_hf(moe, tmp_path / "out")


def test_an_index_of_the_one_file_is_read(tmp_path, moe):
    shard(moe, hf.SINGLE_FILE, index=True)
    stream.from_hf(moe, tmp_path / "out")


TOO_MANY = {
    "tokenizer.json": {"added_tokens": [{"id": 512, "content": "x"}]},
    "vocab.json": {"x": 512},
    "added_tokens.json": {"x": 512},
    "tokenizer_config.json": {"added_tokens_decoder": {"512": {"content": "x"}}},
}


@pytest.mark.parametrize("file", TOO_MANY)
def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused_both_ways(
    tmp_path, moe, ours, file
):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 511}}}')
    stream.to_hf(ours, tmp_path / "fits", folder)
    (folder / file).write_text(json.dumps(TOO_MANY[file]))
    (moe / file).write_text(json.dumps(TOO_MANY[file]))
    for convert in (
        lambda: stream.from_hf(moe, tmp_path / "out"),
        lambda: stream.to_hf(ours, tmp_path / "out", folder),
    ):
        with pytest.raises(ConfigError, match="has 513 tokens, more than .*vocab_size = 512"):
            convert()


def tensors_as(folder, dtype):
    return {name: tensor.to(dtype) for name, tensor in load_file(folder / hf.SINGLE_FILE).items()}


@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("given", [torch.float32, torch.float16, "mixed"])
def test_dtype_rounds_every_tensor_to_the_nearest_in_both_directions(tmp_path, given, wanted):
    kind = torch.float32 if given == "mixed" else given
    folder = random_hf(tmp_path / "hf", model("tiny-moe"), kind)
    if given == "mixed":
        change_tensors(folder, lambda t: t.update({k: t[k].half() for k in sorted(t)[::2]}))
    expected = tensors_as(folder, wanted)  # torch rounds as IEEE 754 says
    stream.from_hf(folder, tmp_path / "ours", dtype=wanted)
    precision = {torch.bfloat16: "bf16", torch.float32: "fp32"}[wanted]
    assert Checkpoint(tmp_path / "ours").config.train.precision == precision
    stream.to_hf(tmp_path / "ours", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] in str(wanted)
    stream.from_hf(folder, tmp_path / "exact", dtype=torch.float32)
    stream.to_hf(tmp_path / "exact", tmp_path / "again", dtype=wanted)
    for out in ("out", "again"):
        actual = load_file(tmp_path / out / hf.SINGLE_FILE)
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            assert actual[name].dtype == wanted and torch.equal(actual[name], tensor), name


def test_the_command_converts_types_and_names_them(tmp_path, capsys):
    folder = random_hf(tmp_path / "hf", model("tiny-dense"), torch.float16)
    command = ["from-hf", str(folder), str(tmp_path / "out")]
    assert convert_checkpoint.main(command) == 2
    assert "is F16; valid: BF16, F32; --dtype bfloat16" in capsys.readouterr().err
    tool = [sys.executable, "tools/convert_checkpoint.py", *command, "--dtype", "bfloat16"]
    subprocess.run(tool, cwd=ROOT, check=True, capture_output=True)
    assert set(Checkpoint(tmp_path / "out").dtypes.values()) == {torch.bfloat16}


IDS = [
    ({"eos_token_id": 501, "bos_token_id": 500, "pad_token_id": 500}, {}),
    ({"eos_token_id": [501, 500, 7]}, {"eos_token_id": 500, "pad_token_id": 499}),
    ({"eos_token_id": 500}, {"eos_token_id": [501, 500], "bos_token_id": 500}),
    ({"eos_token_id": [500]}, None),
]


@pytest.mark.parametrize("with_tokenizer", [True, False])
@pytest.mark.parametrize(("config", "generation"), IDS)
def test_ids_of_both_configs_come_back_as_they_were(
    tmp_path, moe, config, generation, with_tokenizer
):
    roles = ("bos_token_id", "eos_token_id", "pad_token_id")
    change_config(moe, **config)
    if generation is not None:
        (moe / "generation_config.json").write_text(json.dumps(generation))
    if with_tokenizer:
        added = [{"id": 400, "content": "<|endoftext|>"}, {"id": 401, "content": "<|im_end|>"}]
        (moe / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    stream.from_hf(moe, tmp_path / "ours")
    assert stream.to_hf(tmp_path / "ours", tmp_path / "out") is with_tokenizer
    exported = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {role: exported[role] for role in config} == config
    said = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    for role in roles if generation else ():
        assert said.get(role) == generation.get(role)
    every = {500, *(n for said in (config, generation or {}) for n in ids_of(said))}
    assert set(hf_files.end_ids(moe)) | {500} == every
    assert hf_files.end_ids(tmp_path / "ours" / "tokenizer") == hf_files.end_ids(moe)


def ids_of(said):
    ids = said.get("eos_token_id", [])
    return [ids] if isinstance(ids, int) else ids


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", ["</s>", [500, "x"], -1, True, {"a": 1}])
def test_an_end_that_is_no_id_is_refused_by_file_and_field(tmp_path, moe, file, value):
    if file == "config.json":
        change_config(moe, eos_token_id=value)
    else:
        (moe / file).write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ConfigError, match=rf"hf/{file}: eos_token_id = .*; valid: an id"):
        stream.from_hf(moe, tmp_path / "out")


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_config_without_a_type_takes_that_of_the_tensors(tmp_path, kind):
    folder = random_hf(tmp_path / "hf", model("tiny-dense"), kind)
    change_config(folder, dtype=None, torch_dtype=None)
    precision = {torch.bfloat16: "bf16", torch.float32: "fp32"}[kind]
    assert ModelSource(folder).config([], 1).train.precision == precision


def test_layers_that_trained_on_a_gpu_are_asked_for_by_nobody_who_reads_their_weights(ours):
    settings = (ours / "config.toml").read_text()
    assert 'kind = "auto"' in settings
    (ours / "config.toml").write_text(settings.replace('kind = "auto"', 'kind = "te"'))
    seals = {**manifest.read(ours), "config.toml": manifest.seal(ours / "config.toml")}
    manifest.write(ours, seals)
    assert ModelSource(ours).config([], 1).model.kind == "auto"
    compared = verify._on_one_rank(Checkpoint(ours).config, length=3, precision="fp32")
    assert compared.model.kind == "auto"


def test_a_model_reads_as_far_as_its_rows_or_yarn_reach(ours, moe, tmp_path):
    """A run's rows are told from a conversion's by the name of a step's folder."""
    plain, stretched = RopeConfig(), RopeConfig(yarn_factor=4, yarn_original_length=64)
    rows = load([ours / "config.toml"]).data.sequence_length
    assert ModelSource(ours).reach(plain) == ModelSource(moe).reach(plain) == rows
    assert ModelSource(ours).reach(RopeConfig(yarn_factor=4, yarn_original_length=rows)) == 4 * rows
    assert ModelSource(ours).reach(RopeConfig(dca_chunk_size=64, dca_local_size=16)) == 0
    hf_config.write_config(moe, model("tiny-moe"), stretched, 4096, "bfloat16", {})
    step = tmp_path / "step_00000001"
    stream.from_hf(moe, step)
    assert ModelSource(step).trained_length() == ModelSource(step).reach(stretched) == 256
    assert ModelSource(step.rename(tmp_path / "converted")).trained_length() == 64


def test_inspect_says_what_a_folder_is(moe, ours):
    for folder, kind in ((moe, "Hugging Face"), (ours, "checkpoint of megatron_qwen3")):
        text = describe(folder)
        assert kind in text and "bfloat16" in text and "8 experts" in text
    sizes = [row.name for row in fields(ParallelConfig) if type(row.default) is int]
    assert "context" in sizes and all(f"{name} 1" in describe(ours) for name in sizes)


@pytest.mark.parametrize("workers", ["0", "-1", "two"])
def test_a_number_of_threads_that_is_none_is_refused(moe, capsys, workers):
    with pytest.raises(SystemExit) as ended:
        convert_checkpoint.main(["from-hf", str(moe), "out", "--workers", workers])
    assert ended.value.code == 2 and "argument --workers: " in capsys.readouterr().err


def test_a_disk_that_cannot_be_written_is_told_in_one_line(moe, capsys):
    assert convert_checkpoint.main(["from-hf", str(moe), "/proc/nowhere"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and "/proc/nowhere" in told and told.count("\n") == 1


@pytest.mark.parametrize("command", ["from-hf", "to-hf", "verify", "inspect"])
def test_help_of_each_command_shows_a_call_of_it(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        convert_checkpoint.main([command, "--help"])
    assert f"mq3 convert {command} " in capsys.readouterr().out


def test_a_missing_transformers_is_named_with_its_extra(monkeypatch, tmp_path, capsys):
    """Its process would end with a traceback, of which only the last words are told."""
    monkeypatch.setattr(reference, "find_spec", lambda _: None)
    ids_BS = torch.zeros(1, 2, dtype=torch.long)
    assert installed(lambda: reference.logits(tmp_path, ids_BS, "float32")) == 2
    assert "pip install 'megatron_qwen3[verify]'" in capsys.readouterr().err
