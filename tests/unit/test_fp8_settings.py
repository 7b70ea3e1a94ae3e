"""Settings of FP8: valid pairs, chips' abilities, and errors with the way out."""

import dataclasses
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.version import Version

from megatron_qwen3.config import Config, ConfigError, load, to_toml
from megatron_qwen3.cpu import redirect
from megatron_qwen3.model import specs
from megatron_qwen3.parallel import fp8, installed
from megatron_qwen3.parallel.layout import row_unit
from megatron_qwen3.parallel.mcore import (
    DistributedDataParallelConfig,
    OptimizerConfig,
    TransformerConfig,
)
from megatron_qwen3.planner import allocation, hardware
from megatron_qwen3.planner.allocation import Allocation
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.memory import Memory
from megatron_qwen3.presets import PRESETS
from megatron_qwen3.settings import ParallelConfig
from megatron_qwen3.settings_fp8 import ARITHMETIC, UNITS, Fp8Config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = ["model.preset=tiny-dense", "train.steps=1"]
MOE = ["model.preset=qwen3-30b-a3b", "train.steps=1"]
TASKS = ('rollouts.tasks=[{name="a",path="x"}]',)
RECIPES = tuple(ARITHMETIC)


def config_of(*pairs: str, preset: str = "tiny-dense") -> Config:
    return load([], [f"model.preset={preset}", "train.steps=1", *pairs])


def error_of(pairs):
    with pytest.raises(ConfigError) as raised:
        load([], pairs)
    return str(raised.value)


def test_a_run_computes_in_bf16_unless_told():
    assert load([], TINY).fp8 == Fp8Config() and not load([], TINY).fp8.is_on


def test_settings_of_before_the_table_compute_in_bf16(tmp_path):
    text = to_toml(load([], TINY))
    start = text.index("[fp8]")
    old = tmp_path / "config.toml"
    old.write_text(text[:start] + text[text.index("[parallel]") :], encoding="utf-8")
    assert load([old]) == load([], TINY)


def test_the_table_is_written_and_read_alike(tmp_path):
    config = config_of("fp8.recipe=delayed", "fp8.history=16", "fp8.history_choice=most_recent")
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert load([tmp_path / "config.toml"]) == config != load([], TINY)


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        (["fp8.recipe=e4m3"], "is not one of none, delayed, tensorwise, blockwise, mxfp8, nvfp4"),
        (["fp8.recipe=tensorwise", "fp8.format=e5m2"], "is not one of auto, e4m3, hybrid"),
        (["fp8.recipe=tensorwise", "train.precision=fp32"], 'set train.precision = "bf16", or fp8'),
        (["fp8.recipe=mxfp8", "model.kind=torch"], 'set model.kind = "te" or "auto", or fp8.rec'),
        (
            ["fp8.recipe=mxfp8", "fp8.expert_rows=route"],
            'but the model is dense; set it back to "pad"',
        ),
        (["fp8.format=hybrid"], 'fp8.format = "hybrid", but fp8.recipe = "none"'),
        (["fp8.first_layers_bf16=1"], "set a recipe, or this back to 0"),
        (["fp8.recipe=tensorwise", "fp8.margin=1"], 'goes with fp8.recipe = "delayed"'),
        (["fp8.recipe=mxfp8", "fp8.history=1"], "set it back to 1024"),
        (["fp8.recipe=delayed", "fp8.history=0"], "fp8.history = 0 must be at least 1"),
        (["fp8.recipe=nvfp4", "fp8.format=e4m3"], "is of 8 bits"),
        (["fp8.recipe=delayed", "fp8.last_layers_bf16=1"], "fp8.last_layers_bf16 = 1 with fp8"),
        (["fp8.recipe=tensorwise", "fp8.last_layers_bf16=-1"], "must be at least 0"),
        (["fp8.recipe=mxfp8", "fp8.gather=true"], "set it to false, or fp8.recipe = delayed or t"),
        (
            ["fp8.recipe=tensorwise", "fp8.gather=true", "optim.distributed=false"],
            "fp8.gather = true needs optim.distributed = true",
        ),
        (
            ["fp8.recipe=tensorwise", "fp8.gather=true", "run.mode=rl", *TASKS],
            "whose answers are sampled by weights in bf16",
        ),
        (
            ["fp8.recipe=tensorwise", "fp8.first_layers_bf16=3", "fp8.last_layers_bf16=1"],
            "leave none of model.num_layers = 4 to FP8",
        ),
        (
            ["fp8.recipe=tensorwise", "fp8.first_layers_bf16=2", "parallel.pipeline=4"],
            "which megatron-core takes at most; valid: 0 to 1",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_way_out(pairs, named):
    assert named in error_of([*TINY, *pairs])


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        (
            [*MOE, "fp8.recipe=tensorwise", "model.hidden_size=2056"],
            "model.hidden_size = 2056 (preset qwen3-30b-a3b) is no multiple of 16, which fp8.recipe"
            ' = "tensorwise" needs; valid near it: 2048, 2064',
        ),
        (
            [*MOE, "fp8.recipe=blockwise", "parallel.expert_tensor=4"],
            "model.expert_ffn_hidden_size / parallel.expert_tensor = 768 / 4 = 192 (preset "
            'qwen3-30b-a3b) is no multiple of 128, which fp8.recipe = "blockwise" needs; valid '
            "near it: 512, 1024, or parallel.expert_tensor = 2",
        ),
        (
            [*TINY, "fp8.recipe=mxfp8", "model.ffn_hidden_size=160", "parallel.tensor=2"],
            "model.ffn_hidden_size / parallel.tensor = 160 / 2 = 80",
        ),
        (
            [*TINY, "fp8.recipe=tensorwise", "data.sequence_length=72"],
            "data.sequence_length = 72 is no multiple of 16, which fp8.recipe = "
            '"tensorwise" needs; valid near it: 64, 80',
        ),
        (
            [*TINY, "fp8.recipe=tensorwise", "data.sequence_length=1032", "parallel.context=2"],
            "no multiple of 32, which parallel.context = 2 and fp8.recipe",
        ),
    ],
)
def test_sizes_that_do_not_divide_are_named_with_the_nearest_that_do(pairs, named):
    assert named in error_of(pairs)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("preset", [name for name in PRESETS if not name.startswith("tiny")])
def test_every_size_trains_in_every_recipe(preset, recipe):
    assert config_of(f"fp8.recipe={recipe}", preset=preset).fp8.is_on


@pytest.mark.parametrize("name", ["hopper", "blackwell"])
@pytest.mark.parametrize("model", ["qwen3_4b", "qwen3_8b", "qwen3_30b_a3b", "qwen3_235b_a22b"])
def test_an_example_goes_after_a_model_and_sets_nothing_but_fp8(name, model):
    files = [EXAMPLES / "stages/pretrain_1_general.toml", EXAMPLES / f"models/{model}.toml"]
    plain, low = load(files), load([*files, EXAMPLES / f"fp8/{name}.toml"])
    assert dataclasses.replace(low, fp8=plain.fp8) == plain and low.fp8.is_on


@pytest.mark.parametrize("recipe", RECIPES)
def test_rows_are_what_the_products_of_all_ranks_take(recipe):
    """The rule of Transformer Engine's assert_dim_for_fp8_exec before ranks gather a row, and all
    three products' sizes after it."""
    lengths = range(8, 2048, 8)
    for tensor, context, sequence in itertools.product((1, 2, 4, 8), (1, 2), (True, False)):
        p = ParallelConfig(tensor=tensor, context=context, sequence=sequence)
        unit, _ = row_unit(p, Fp8Config(recipe=recipe))
        shares = tensor if sequence else 1
        cut = 2 * context if context > 1 else 1
        fitting = [
            n
            for n in lengths
            if n % cut == 0
            and n // context % (8 * shares) == 0
            and n // context % UNITS[recipe] == 0
        ]
        assert fitting == [n for n in lengths if n % unit == 0]


@pytest.mark.parametrize(
    ("gpu", "recipes"),
    [
        ("a100", ()),
        ("h100", ("delayed", "tensorwise", "blockwise")),
        ("gb200", RECIPES),
    ],
)
def test_a_chip_without_a_recipe_is_told_before_a_job_waits_for_it(gpu, recipes):
    asked = Allocation(1, 8, 8, hardware.load(gpu), 86400, 600)
    for recipe in RECIPES:
        config = config_of(f"fp8.recipe={recipe}", "train.global_batch=64", preset="qwen3-0.6b")
        text = "\n".join(allocation.faults(config, asked))
        assert ("has no products of this kind" in text) == (recipe not in recipes), text
        if recipe not in recipes:
            assert f"valid there: {', '.join(('none', *recipes))}" in text


def test_a_machine_without_transformer_engine_is_told_what_installs_it(monkeypatch):
    monkeypatch.setattr(installed, "release", lambda package: "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="is not installed: pip install") as raised:
        fp8.check(config_of("fp8.recipe=tensorwise"))
    assert "\n" not in str(raised.value)
    fp8.check(config_of())


def test_transformer_engine_that_tells_no_version_is_taken_for_one_that_has_the_recipe(
    monkeypatch, tmp_path
):
    """As a folder of it on PYTHONPATH, which its layers are built from, too."""
    (tmp_path / "transformer_engine").mkdir()
    (tmp_path / "transformer_engine" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "transformer_engine", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert installed.release("transformer_engine") == installed.UNKNOWN
    fp8.check(config_of("fp8.recipe=tensorwise"))


def test_layers_of_torch_never_take_the_place_of_fp8():
    """Where model.kind is "auto" they would, without a word."""
    with pytest.raises(ConfigError, match='fp8.recipe = "tensorwise", but torch sees no GPU'):
        specs.kind(config_of("fp8.recipe=tensorwise"))


def test_a_job_without_gpus_has_no_fp8():
    config = config_of("fp8.recipe=tensorwise", "train.global_batch=8")
    asked = Allocation(1, 8, 8, None, 86400, 600)
    assert allocation.faults(config, asked) == [
        'fp8.recipe = "tensorwise" needs GPUs, and --gres none asks for none; valid: "none"'
    ]


def test_without_a_gpu_nobody_is_sent_to_install_what_needs_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as raised:
        fp8.check(config_of("fp8.recipe=tensorwise"))
    assert str(raised.value) == (
        'fp8.recipe = "tensorwise", but torch sees no GPU, which it needs; valid here: "none"'
    )


@pytest.mark.parametrize(
    ("recipe", "capability", "cuda", "engine", "told"),
    [
        ("tensorwise", (9, 0), "12.4", "2.2.0", ""),
        ("tensorwise", (8, 9), "12.4", "2.20.2", ""),
        ("tensorwise", (8, 0), "12.9", "2.20.2", "valid there: none"),
        ("tensorwise", (9, 0), "12.9", "2.1.0", "needs Transformer Engine 2.2 or newer, and 2.1.0"),
        ("blockwise", (9, 0), "12.8", "2.20.2", "needs CUDA 12.9 or newer, and torch was built f"),
        ("blockwise", (9, 0), "13.0", "2.20.2", ""),
        ("mxfp8", (9, 0), "13.0", "2.20.2", "valid there: none, delayed, tensorwise, blockwise"),
        ("mxfp8", (10, 0), "13.0", "2.20.2", ""),
        (
            "mxfp8",
            (12, 0),
            "13.0",
            "2.20.2",
            "valid there: none, delayed, tensorwise, blockwise, n",
        ),
        ("nvfp4", (12, 0), "13.0", "2.20.2", ""),
        ("nvfp4", (10, 0), "13.0", "2.6.1+abc", "pip install --upgrade"),
    ],
)
def test_a_machine_without_a_recipe_is_told_before_any_rank_joins(
    monkeypatch, recipe, capability, cuda, engine, told
):
    major, minor = capability
    chip = SimpleNamespace(name="NVIDIA chip", major=major, minor=minor)
    monkeypatch.setattr(redirect, "REDIRECTED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: chip)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(installed, "release", lambda package: engine)
    config = config_of(f"fp8.recipe={recipe}", preset="qwen3-0.6b")
    if not told:
        fp8.check(config)
        return
    with pytest.raises(ConfigError) as raised:
        fp8.check(config)
    assert told in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("preset", ["tiny-dense", "tiny-moe"])
def test_megatron_core_takes_what_it_is_told(monkeypatch, recipe, preset):
    monkeypatch.setattr("megatron.core.utils.get_te_version", lambda: Version("2.20.2"))
    ends = [] if recipe == "delayed" else ["fp8.first_layers_bf16=1", "fp8.last_layers_bf16=1"]
    route = ["fp8.expert_rows=route"] if preset == "tiny-moe" else []
    sizes = ["data.sequence_length=128"]
    if recipe == "blockwise":
        sizes += ["model.hidden_size=128", "model.head_dim=64", "model.ffn_hidden_size=256"]
        sizes = sizes[:-1] + ["model.expert_ffn_hidden_size=128"] if route else sizes
    config = config_of(f"fp8.recipe={recipe}", *ends, *route, *sizes, preset=preset)
    told = TransformerConfig(
        num_layers=4,
        hidden_size=64,
        num_attention_heads=4,
        bf16=True,
        params_dtype=torch.bfloat16,
        num_moe_experts=8 if route else None,
        moe_token_dispatcher_type="alltoall",
        add_bias_linear=False,
        **fp8.of_model(config),
    )
    assert (told.fp4 if recipe == "nvfp4" else told.fp8) == config.fp8.bits_format
    assert told.moe_router_padding_for_quantization == bool(route)
    assert told.first_last_layers_bf16 == bool(ends)
    if recipe == "delayed":
        assert (told.fp8_amax_history_len, told.fp8_amax_compute_algo) == (1024, "max")
    OptimizerConfig(bf16=True, params_dtype=torch.bfloat16, **fp8.of_optimizer(config))
    DistributedDataParallelConfig(**fp8.of_gradients(config))


def test_the_planner_counts_the_copies_of_weights_and_what_activations_save():
    wide, low = (
        config_of(f"fp8.recipe={recipe}", "train.global_batch=8", preset="qwen3-8b")
        for recipe in ("none", "tensorwise")
    )
    (wide, low) = (Memory.of(Job.of(config, 8)) for config in (wide, low))
    model = PRESETS["qwen3-8b"]
    h, f = model["hidden_size"], model["ffn_hidden_size"]
    heads, groups = model["num_attention_heads"], model["num_query_groups"]
    layer = 128 * h * (heads + 2 * groups) + 128 * h * heads + 3 * h * f
    assert low.weights - wide.weights == 2 * model["num_layers"] * layer
    assert low.activations < wide.activations


def test_layers_that_stay_in_bf16_have_no_copies():
    half = ["fp8.first_layers_bf16=9", "fp8.last_layers_bf16=9"]
    sizes = []
    for pairs in (["fp8.recipe=none"], ["fp8.recipe=mxfp8"], ["fp8.recipe=mxfp8", *half]):
        config = config_of(*pairs, "train.global_batch=8", preset="qwen3-8b")
        sizes.append(Memory.of(Job.of(config, 8)).weights)
    assert sizes[2] - sizes[0] == pytest.approx((sizes[1] - sizes[0]) / 2)
