"""Overlap and memory on GPUs: each setting reaches megatron-core, or is refused in one line."""

import sys
import types
from dataclasses import replace

import pytest
import torch

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.model.build import transformer_config
from megatron_qwen3.parallel import installed, overlap
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.settings import SETTINGS
from megatron_qwen3.settings_overlap import SPARSE_GRAPHS, SPARSE_PARTS
from megatron_qwen3.training import adams, engine, optim
from megatron_qwen3.validate_overlap import cpu_faults

from megatron.core.optimizer import optimizer_config  # isort: skip  (after ours)

DENSE = ("model.preset=tiny-dense", "train.steps=2", "model.kind=te")
SPARSE = ("model.preset=tiny-moe", "train.steps=2", "model.kind=te", "parallel.expert=2")
TENSOR = (*DENSE, "parallel.tensor=2")


def asked(*overrides):
    return load([], list(overrides))


def told_model(monkeypatch, config, world_size=2):
    """megatron-core's configuration of the model, as of a machine that has Transformer Engine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plain = replace(config, model=replace(config.model, kind="torch"))
    return transformer_config(plain, Layout.of(config, world_size))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((*TENSOR, "overlap.tensor=true"), {"tp_comm_overlap": True, "sequence_parallel": True}),
        (
            (*SPARSE, "overlap.experts=true", "overlap.delay_weight_gradients=true"),
            {"overlap_moe_expert_parallel_comm": True, "delay_wgrad_compute": True},
        ),
        (
            (*SPARSE, "overlap.experts=true"),
            {"overlap_moe_expert_parallel_comm": True, "delay_wgrad_compute": False},
        ),
        (
            (*SPARSE, "overlap.experts=true", "parallel.dispatch=deepep"),
            {"overlap_moe_expert_parallel_comm": True, "moe_router_dtype": "fp32"},
        ),
        (
            (*SPARSE, 'overlap.offload_parts=["core_attn","attn_proj","expert_fc1"]'),
            {
                "fine_grained_activation_offloading": True,
                "offload_modules": ["core_attn", "attn_proj", "expert_fc1"],
            },
        ),
        (
            (*DENSE, "overlap.offload_layers=3"),
            {"cpu_offloading": True, "cpu_offloading_num_layers": 3},
        ),
        (
            SPARSE,
            {
                "tp_comm_overlap": False,
                "overlap_moe_expert_parallel_comm": False,
                "delay_wgrad_compute": False,
                "fine_grained_activation_offloading": False,
                "cpu_offloading": False,
            },
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_settings_of_the_model_reach_megatron_core(monkeypatch, given, expected):
    found = told_model(monkeypatch, asked(*given))
    assert {name: getattr(found, name) for name in expected} == expected


def test_settings_of_gradients_reach_megatron_core(monkeypatch):
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    usual = engine.ddp_config(asked(*DENSE))
    assert (usual.grad_reduce_in_fp32, usual.nccl_ub, usual.delay_wgrad_compute) == (True,) + (
        False,
    ) * 2
    found = engine.ddp_config(asked(*DENSE, "optim.gradients=bf16", "overlap.nccl_buffers=true"))
    assert (found.grad_reduce_in_fp32, found.nccl_ub) == (False, True)
    delayed = ("overlap.experts=true", "overlap.delay_weight_gradients=true")
    assert engine.ddp_config(asked(*SPARSE, *delayed)).delay_wgrad_compute


class _Adam(torch.optim.Adam):
    """With the arguments that Transformer Engine's has, which megatron-core looks for."""

    def __init__(
        self, params, master_weight_dtype, exp_avg_dtype, exp_avg_sq_dtype, use_decoupled_grad
    ):
        pass


@pytest.fixture
def engine_there(monkeypatch):
    """megatron-core sees a Transformer Engine, whose optimizer can be asked for its arguments."""
    module = types.ModuleType("transformer_engine.pytorch.optimizers")
    module.FusedAdam = _Adam
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(optimizer_config, "is_te_min_version", lambda *args: True)
    return module


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), {"use_precision_aware_optimizer": False, "optimizer_cpu_offload": False}),
        (
            ("optim.first_moment=bf16",),
            {
                "use_precision_aware_optimizer": True,
                "exp_avg_dtype": torch.bfloat16,
                "exp_avg_sq_dtype": torch.float32,
                "main_grads_dtype": torch.float32,
                "store_param_remainders": False,
            },
        ),
        (
            ("optim.second_moment=bf16", "optim.gradients=bf16"),
            {
                "exp_avg_dtype": torch.float32,
                "exp_avg_sq_dtype": torch.bfloat16,
                "main_grads_dtype": torch.bfloat16,
                "main_params_dtype": torch.float32,
            },
        ),
        (
            ("optim.offload=0.25", "optim.offload_overlap=true"),
            {
                "use_precision_aware_optimizer": True,
                "optimizer_cpu_offload": True,
                "optimizer_offload_fraction": 0.25,
                "overlap_cpu_optimizer_d2h_h2d": True,
            },
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_settings_of_the_optimizer_reach_megatron_core(engine_there, given, expected):
    found = optim.optimizer_config(asked(*DENSE, *given))
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("optim.gradients=bf16", "train.precision=fp32", "model.kind=torch"), 'not "fp32"; set'),
        (("optim.first_moment=bf16", "optim.distributed=false"), "needs optim.distributed = true"),
        (("optim.first_moment=bf16", "optim.adam=torch"), 'optim.adam = "torch"; valid: auto, te'),
        (("optim.second_moment=bf16", "optim.offload=1"), "the host keeps float32 moments"),
        (
            ("optim.second_moment=bf16", "optim.beta2=0.999"),
            "valid: optim.beta2 at most 0.9961",
        ),
        (("optim.offload=1", "train.precision=fp32", "model.kind=torch"), "set optim.offload = 0"),
        (("optim.offload=1", "optim.distributed=false"), "needs optim.distributed = true"),
        (("optim.offload_overlap=true",), "needs optim.offload above 0"),
        (("optim.offload=1", "run.device=cpu", "model.kind=torch"), "is for GPUs"),
        (("overlap.nccl_buffers=true", "run.device=cpu", "model.kind=torch"), "is for GPUs"),
        (("optim.adam=apex", "run.device=cpu", "model.kind=torch"), "is for GPUs"),
        (("overlap.offload_layers=2", "model.kind=torch"), 'needs model.kind = "te", not "torch"'),
        (("overlap.tensor=true", "model.kind=auto", "parallel.tensor=2"), 'not "auto"; set it'),
        (("overlap.tensor=true",), "parallel.tensor = 1 has nothing to send"),
        (
            ("overlap.tensor=true", "parallel.tensor=2", "parallel.sequence=false"),
            "needs parallel.sequence = true",
        ),
        (("overlap.delay_weight_gradients=true",), "needs overlap.experts = true"),
        (
            ("overlap.experts=true", "model.tie_embeddings=false"),
            "parallel.expert = 1 sends no tokens",
        ),
        (('overlap.offload_parts=["mlp_norm"]',), "no part of a dense layer"),
        (('overlap.offload_parts=["attn_proj"]',), 'add "core_attn"'),
        (('overlap.offload_parts=["core_attn","core_attn"]',), "names a part twice"),
        (("overlap.offload_layers=4",), "must be below model.num_layers = 4"),
        (("overlap.offload_layers=2", "parallel.recompute=full"), "leave one of them out"),
        (
            ('overlap.offload_parts=["core_attn"]', "parallel.recompute=full"),
            '"core_attn" is computed again',
        ),
        (
            ('overlap.offload_parts=["core_attn"]', "overlap.offload_layers=1"),
            "send the same",
        ),
        (("overlap.offload_layers=1", "parallel.pipeline=2"), "needs parallel.pipeline = 1"),
        (
            (
                'overlap.offload_parts=["core_attn"]',
                "parallel.pipeline=2",
                "parallel.virtual_pipeline=2",
            ),
            "takes one model chunk's activations for another's; set it to 1",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_does_not_go_together_is_refused_in_one_line(given, message):
    with pytest.raises(ConfigError) as caught:
        asked(*DENSE, *given)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("parallel.pipeline=2",), "needs parallel.virtual_pipeline above 1"),
        (("parallel.recompute=selective",), 'set parallel.recompute = "none"'),
        (("model.tie_embeddings=true",), "makes one weight of both"),
        (("overlap.offload_layers=1",), "in place of offload_layers"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_experts_overlap_cannot_go_with_is_refused(given, message):
    with pytest.raises(ConfigError) as caught:
        asked(*SPARSE, "overlap.experts=true", *given)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_recomputed_experts_are_not_sent_and_the_rest_may_be():
    parts = 'overlap.offload_parts=["core_attn","mlp_norm"]'
    asked(*SPARSE, parts, "parallel.recompute=selective")
    with pytest.raises(ConfigError, match='"moe_act" is computed again'):
        asked(*SPARSE, 'overlap.offload_parts=["moe_act"]', "parallel.recompute=selective")


def test_whatever_is_for_gpus_is_named_on_a_machine_without(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = asked(*DENSE, "optim.first_moment=bf16", "overlap.nccl_buffers=true")
    with pytest.raises(ConfigError) as caught:
        overlap.check(config)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and all("torch sees none; set" in line for line in lines)
    assert [*cpu_faults(asked(*DENSE), "none")] == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("optim.adam=apex",), ("apex", "APEX_CUDA_EXT=1", "NVIDIA/apex")),
        (("optim.adam=te",), ("Transformer Engine", "transformer_engine[pytorch]")),
        (("optim.offload=0.5",), ("Transformer Engine", "transformer_engine[pytorch]")),
    ],
    ids=lambda value: value[0],
)
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(
    monkeypatch, given, words
):
    for name in ("apex", "transformer_engine"):
        monkeypatch.setitem(sys.modules, name, None)
    config = asked(*SPARSE, *given)
    with pytest.raises(ConfigError) as caught:
        installed.check(config)
    text = str(caught.value)
    assert all(word in text for word in words) and len(text.splitlines()) == 1


def test_apex_that_was_installed_without_its_kernels_is_not_taken_for_apex(monkeypatch):
    """Its optimizer can be imported all the same, and fails where it is made."""
    optimizers = types.ModuleType("apex.optimizers")
    optimizers.FusedAdam = object
    for name, module in (("apex", types.ModuleType("apex")), ("apex.optimizers", optimizers)):
        monkeypatch.setitem(sys.modules, name, module)
    config = asked(*DENSE, "optim.adam=apex")
    monkeypatch.setitem(sys.modules, "amp_C", None)
    with pytest.raises(ConfigError, match=r"apex with its CUDA ext.*amp_C.*APEX_CUDA_EXT=1"):
        installed.check(config)
    monkeypatch.setitem(sys.modules, "amp_C", types.ModuleType("amp_C"))
    installed.check(config)


def test_buffers_without_multicast_are_told_before_ranks_meet(monkeypatch):
    """As Transformer Engine's initialize_ub raises, on every rank."""
    kernels = types.ModuleType("transformer_engine_torch")
    kernels.device_supports_multicast = lambda number: False
    monkeypatch.setitem(sys.modules, kernels.__name__, kernels)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(installed, "check", lambda config: None)
    monkeypatch.delenv("UB_SKIPMC", raising=False)
    config = asked(*TENSOR, "overlap.tensor=true")
    with pytest.raises(ConfigError, match="no CUDA multicast.*export UB_SKIPMC=1"):
        overlap.check(config)
    monkeypatch.setenv("UB_SKIPMC", "1")
    overlap.check(config)
    monkeypatch.delenv("UB_SKIPMC")
    kernels.device_supports_multicast = lambda number: True
    overlap.check(config)


def test_memory_that_grows_is_not_nccls_nor_sends_the_old_code_weights(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "a:1,expandable_segments:True")
    monkeypatch.delenv(overlap.OLD_OFFLOAD, raising=False)
    with pytest.raises(ConfigError, match="CONF=expandable_segments:False"):
        overlap.check(asked(*DENSE, "overlap.nccl_buffers=true"))
    parts = asked(*DENSE, 'overlap.offload_parts=["core_attn"]')
    with pytest.raises(ConfigError, match="set NVTE_CPU_OFFLOAD_V1=1"):
        overlap.check(parts)
    monkeypatch.setenv(overlap.OLD_OFFLOAD, "1")
    overlap.check(parts)


def test_layers_that_are_taken_apart_do_not_leave_four_bits_out_without_a_word(monkeypatch):
    """megatron-core 0.16 asks there for FP8 alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    sparse = *SPARSE, "parallel.expert=2", "overlap.experts=true"
    context = "get_inner_quantization_context"
    monkeypatch.setattr(overlap.TransformerLayer, context, None, raising=False)
    overlap.check(asked(*sparse, "fp8.recipe=nvfp4"))
    monkeypatch.delattr(overlap.TransformerLayer, context)
    overlap.check(asked(*sparse, "fp8.recipe=mxfp8"))
    with pytest.raises(ConfigError, match=r"apart in bf16; pip install 'megatron-core>=0\.19'"):
        overlap.check(asked(*sparse, "fp8.recipe=nvfp4"))


@pytest.mark.parametrize(
    ("fp8", "expected"),
    [
        ((), ["none"]),
        (("fp8.recipe=tensorwise",), ["fp8"]),
        (("fp8.recipe=tensorwise", "fp8.first_layers_bf16=1"), ["fp8", "none"]),
    ],
    ids=["bf16", "fp8", "first-in-bf16"],
)
def test_user_buffers_are_made_for_a_micro_batch_of_full_rows(monkeypatch, fp8, expected):
    told = []
    modes = types.SimpleNamespace(NONE="none", FP8="fp8")
    base = types.ModuleType("transformer_engine.pytorch.module.base")
    base.UserBufferQuantizationMode = modes
    base.destroy_ub = lambda: told.append("destroyed")
    base.initialize_ub = lambda **given: told.append(given)
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    module = types.ModuleType("transformer_engine.pytorch.module")
    module.base = base
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    rows = ("train.micro_batch=2", "data.sequence_length=64")
    config = asked(*TENSOR, "overlap.tensor=true", *rows, *fp8)
    layout = replace(Layout.of(config, 2), context=2)
    overlap.begin(config, layout)
    assert told == [
        "destroyed",
        {
            "shape": [64 * 2 // 2, config.model.hidden_size],
            "tp_size": 2,
            "quantization_modes": expected,
            "dtype": torch.bfloat16,
            "bootstrap_backend": "nccl",
        },
    ]
    told.clear()
    overlap.begin(asked(*TENSOR), layout)
    assert told == []


def test_whose_adamw_is_built_is_what_is_asked_for(engine_there):
    from megatron_qwen3.parallel.mcore import distrib_optimizer, optimizers

    before = optimizers.Adam, optimizers.USING_PYTORCH_OPTIMIZER, distrib_optimizer.Adam
    with adams.adam_of("te"):
        assert optimizers.Adam is distrib_optimizer.Adam is engine_there.FusedAdam
        assert not optimizers.USING_PYTORCH_OPTIMIZER
    for name in ("torch", "auto"):  # of a CPU
        with adams.adam_of(name):
            assert optimizers.Adam is torch.optim.AdamW and optimizers.USING_PYTORCH_OPTIMIZER
    after = optimizers.Adam, optimizers.USING_PYTORCH_OPTIMIZER, distrib_optimizer.Adam
    assert after == before


def test_every_setting_of_overlap_is_read_by_what_megatron_core_is_told():
    """Another value than usual changes megatron-core's options: no setting is a mere word."""
    values = {"offload_parts": SPARSE_PARTS, "offload_layers": 2, "cuda_graphs": SPARSE_GRAPHS}
    usual = asked(*SPARSE)
    for name, row in SETTINGS.items():
        if not name.startswith("overlap."):
            continue
        own = name.removeprefix("overlap.")
        value = values.get(own, True)
        other = replace(usual.overlap, **{own: value})
        if own == "delay_weight_gradients":
            other = replace(other, experts=True)
        changed = replace(usual, overlap=other)
        assert value != row.default
        told = [(overlap.of_model(c), overlap.of_gradients(c)) for c in (usual, changed)]
        assert told[0] != told[1], name
