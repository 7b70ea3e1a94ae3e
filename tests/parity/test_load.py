"""A run that starts from a folder of Hugging Face's format has the model that transformers has."""

import contextlib
import io
import json
import shutil

import pytest
import torch
from ranks import RankError, run_ranks
from theirs import randomize

from megatron_qwen3 import train
from megatron_qwen3.config import ConfigError, load, to_toml
from megatron_qwen3.convert import hf_config
from megatron_qwen3.convert.load import CHANGEABLE, check_model, fill, model_of
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.settings_rope import RopeConfig
from megatron_qwen3.toml import emit
from megatron_qwen3.training import objectives, optim
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.model import Model
from megatron_qwen3.training.origin import load_origin

transformers = pytest.importorskip("transformers")

ROWS, POSITIONS = 4, 24
LAYOUTS = {
    "tiny-dense": (4, ("parallel.tensor=2", "parallel.pipeline=2")),
    "tiny-moe": (2, ("parallel.tensor=2", "parallel.expert=2")),
}


def settings(preset, run_dir, *more):
    base = [f"model.preset={preset}", "train.steps=1", "train.precision=fp32", f"run.dir={run_dir}"]
    base += [f"train.global_batch={ROWS}", "model.router_aux_loss=0.0", "run.device=cpu"]
    return [*base, f"data.sequence_length={POSITIONS}", *more]


def ids():
    random = torch.Generator().manual_seed(5)
    return torch.randint(0, 512, (ROWS, POSITIONS + 1), generator=random)


@pytest.fixture(scope="module", params=LAYOUTS)
def theirs(request, tmp_path_factory):
    """(preset, folder that transformers wrote)"""
    folder = tmp_path_factory.mktemp("hf") / request.param
    folder.mkdir()
    model = load([], settings(request.param, folder)).model
    hf_config.write_config(folder, model, RopeConfig(), 4096, "float32", {})
    network = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(folder)
    )
    randomize(network)
    network.save_pretrained(folder)
    return request.param, folder


def begin(arguments):
    config = load([], arguments)
    engine = Engine(config, start(config))
    return engine, load_origin(engine, config)


def first_loss(arguments):
    engine, (progress, told) = begin(arguments)
    assert progress.step == 0 and told[-1].startswith("weights from ")
    mine = ids().chunk(engine.layout.data)[engine.data_rank]
    batch = TokenBatch.of(mine[:, :-1], mine[:, 1:])
    return engine.train_step(batch, objectives.cross_entropy, 0.0)["loss"]


def said(arguments):
    with contextlib.redirect_stderr(io.StringIO()) as told:
        begin(arguments)
    return told.getvalue()


def test_chunks_that_a_folder_has_and_a_run_has_not_are_told(theirs, tmp_path):
    """Qwen has its config_1m.json put in place of config.json."""
    preset, folder = theirs
    shutil.copytree(folder, tmp_path / "long")
    path = tmp_path / "long" / "config.json"
    sizes = {"chunk_size": 64, "local_size": 16}
    fields = json.loads(path.read_text()) | {"dual_chunk_attention_config": sizes}
    path.write_text(json.dumps(fields))
    base = settings(preset, tmp_path, f"checkpoint.init_from={path.parent}")
    taken = [*base, "rope.dca_chunk_size=64", "rope.dca_local_size=16"]
    # megatron-core's newest release speaks of itself among it, and has no notes.
    notes, none = (
        [line for line in run_ranks(said, 1, given)[0].splitlines() if line.startswith("note: ")]
        for given in (base, taken)
    )
    assert notes == [
        f"note: {path}: dual_chunk_attention_config = {sizes} is left out and attention is plain; "
        "rope.dca_chunk_size and rope.dca_local_size say otherwise"
    ]
    assert none == []


def test_the_first_loss_is_transformers_cross_entropy_in_a_split_layout(theirs, tmp_path):
    preset, folder = theirs
    ranks, layout = LAYOUTS[preset]
    arguments = settings(preset, tmp_path, *layout, f"checkpoint.init_from={folder}")
    losses = run_ranks(first_loss, ranks, arguments)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits_BSV = network(ids()[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), ids()[:, 1:].flatten())
    assert losses == pytest.approx([expected.item()] * ranks, rel=2e-6)


def masters(arguments):
    engine, _ = begin(arguments)
    states = optim.owned_states(engine.optimizer)
    return torch.cat([state.tensors["fp32_param"].flatten() for state in states])


def test_a_run_in_bf16_updates_the_float32_weights_of_the_folder(theirs, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    preset, folder = theirs
    arguments = settings(preset, tmp_path, "train.precision=bf16")
    (ours,) = run_ranks(masters, 1, [*arguments, f"checkpoint.init_from={folder}"])
    files = [safetensors.load_file(file) for file in folder.glob("*.safetensors")]
    stored = torch.cat([tensor.flatten() for file in files for tensor in file.values()])
    assert torch.equal(ours.sort().values, stored.sort().values)
    assert not torch.equal(ours, ours.bfloat16().float())


def filled(folder, arguments):
    config = load([], arguments)
    fill(Model(config, start(config)), folder, verify="")


OTHERS = {
    "rope_theta": lambda model: 123.0,
    "norm_eps": lambda model: 0.01,
    "tie_embeddings": lambda model: str(not model.tie_embeddings).lower(),
    "experts_per_token": lambda model: model.experts_per_token + 1,
}


@pytest.mark.parametrize("name", OTHERS)
def test_weights_are_not_read_into_a_model_that_computes_something_else(theirs, tmp_path, name):
    preset, folder = theirs
    stored = model_of(folder)
    if name == "experts_per_token" and not stored.num_experts:
        pytest.skip("a dense model has no experts")
    arguments = settings(preset, tmp_path, f"model.{name}={OTHERS[name](stored)}")
    told = f"model.{name} = .*, but .* was saved with {emit(getattr(stored, name))}"
    with pytest.raises(ConfigError, match=told):
        check_model(load([], arguments), folder)
    if name in CHANGEABLE:
        check_model(load([], arguments), folder, CHANGEABLE)
    if name == "norm_eps":
        with pytest.raises(RankError, match=told):
            run_ranks(filled, 1, folder, arguments)


YARN = ("rope.yarn_factor=4", "rope.yarn_original_length=64")


def test_a_checkpoint_of_another_preset_is_told_by_both_names(tmp_path):
    saved = load([], ["model.preset=tiny-dense", "train.steps=1"])
    (tmp_path / "config.toml").write_text(to_toml(saved))
    told = r"model\.\w+ = .* \(preset tiny-moe\), but .* was saved with .* \(preset tiny-dense\); "
    with pytest.raises(ConfigError, match=told):
        check_model(load([], ["model.preset=tiny-moe", "train.steps=1"]), tmp_path)


def test_weights_are_not_read_into_a_model_that_reads_positions_otherwise(theirs, tmp_path):
    preset, folder = theirs
    config = load([], settings(preset, tmp_path, *YARN))
    with pytest.raises(ConfigError, match=r"rope.yarn_factor = 4.0, but .* was saved with 1.0"):
        check_model(config, folder)
    check_model(config, folder, CHANGEABLE)


def told_of(arguments):
    return begin(arguments)[1][1]


def test_a_stage_with_other_positions_than_the_one_before_says_so(theirs, tmp_path):
    preset, folder = theirs
    more = [f"checkpoint.init_from={folder}", "model.rope_theta=5e6", *YARN]
    (told,) = run_ranks(told_of, 1, settings(preset, tmp_path, *more))
    assert told == [
        "changed: model.rope_theta: 1000000.0 → 5000000.0",
        "changed: rope.yarn_factor: 1.0 → 4.0",
        "changed: rope.yarn_original_length: 0 → 64",
        f"weights from {folder}",
    ]


def truncate(folder):
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1000])


def set_field(name, value):
    def spoil(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (truncate, "truncated"),
        (set_field("model_type", "llama"), "model_type = 'llama' is not Qwen3"),
        (set_field("attention_bias", True), "attention_bias"),
        (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors nor"),
        (None, "model.num_layers = 3, but"),
    ],
)
def test_a_folder_that_does_not_fit_is_told_in_one_line_before_any_rank_starts(
    theirs, tmp_path, capsys, spoil, told
):
    preset, folder = theirs
    shutil.copytree(folder, tmp_path / "theirs")
    more = [f"checkpoint.init_from={tmp_path}/theirs", "run.memory_check=off"]
    if spoil:
        spoil(tmp_path / "theirs")
    else:
        more.append("model.num_layers=3")
    assert train.main(settings(preset, tmp_path / "runs", *more)) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and told in line and line.count("\n") == 1
    assert not torch.distributed.is_initialized() and not (tmp_path / "runs" / "run").exists()
