"""Describes the machine, and checks Transformer Engine's own modules on it.

Without our model: where one of these fails it is the wheel, the driver or the chip.
"""

import importlib.metadata
import platform
import subprocess
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_qwen3.cores import cores
from on_gpu.cases import OF_A_GPU_ALONE, LeftOut, Options, Report

_PACKAGES = (
    *("numpy", "triton", "transformers", "megatron-core", "transformer-engine", "apex"),
    *("transformer-engine-torch", "flash-attn", "nvidia-cudnn-cu13", "nvidia-nccl-cu13"),
)
# A number in E4M3, 3 bits after the first, is off by up to 6 %, by 2.6 % in the mean square; in
# E5M2, as gradients are, by twice that; both in one product by 5.8 %. E2M1, 1 bit, by 10 %.
_OFF = {"bf16": 0.01, "nvfp4": 0.25}
_OFF_IN_FP8 = 0.08


def describe(options: Options, report: Report) -> None:
    """Chip, driver and versions."""
    report.note(
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        cores=cores(),
        packages={name: version for name in _PACKAGES if (version := _version(name))},
        commit=_said_by("git", "rev-parse", "--short", "HEAD"),
    )
    if options.device == "cpu":
        report.note(chip=platform.processor() or platform.machine())
        return
    chip = torch.cuda.get_device_properties(0)
    report.note(
        chip=chip.name,
        capability=[chip.major, chip.minor],
        memory_bytes=chip.total_memory,
        multiprocessors=chip.multi_processor_count,
        cudnn=torch.backends.cudnn.version(),
        nccl=".".join(map(str, torch.cuda.nccl.version())),
    )
    asked = (
        "driver_version,power.limit,clocks.max.sm,clocks.max.mem,persistence_mode,mig.mode.current"
    )
    said = _said_by("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader")
    report.note(nvidia_smi=dict(zip(asked.split(","), said.split(", "), strict=False)))


def load_transformer_engine(options: Options, report: Report) -> None:
    """The import that finds all libraries, or says which it lacks."""
    begin = time.perf_counter()
    te = _transformer_engine(options)
    report.note(seconds_to_import=time.perf_counter() - begin, where=te.__file__)
    import transformer_engine_torch as kernels

    report.note(kernels=getattr(kernels, "__file__", "stood in"))
    if options.device == "cuda":
        report.note(cublaslt=kernels.get_cublasLt_version(), cudnn=kernels.get_cudnn_version())


def compiled(options: Options, report: Report) -> None:
    """torch.compile, by which megatron-core has its activations: it needs a C compiler."""
    if options.device == "cpu":
        raise LeftOut("nothing is compiled for a CPU")
    begin = time.perf_counter()
    gate, up = _random(options, 64, 128), _random(options, 64, 128)
    product = torch.compile(lambda gate, up: F.silu(gate) * up)
    off = _size(product(gate, up).float() - F.silu(gate.float()) * up.float())
    report.note(seconds_to_compile=time.perf_counter() - begin)
    report.check("a compiled product", off / _size(up), _OFF["bf16"])


def linear(options: Options, report: Report, recipe: str) -> None:
    """Transformer Engine's fused norm and linear against torch, forward and backward."""
    te = _transformer_engine(options)
    rows, width, outputs = (64, 64, 96) if options.tiny else (4096, 2048, 6144)
    module = te.LayerNormLinear(
        width, outputs, bias=False, normalization="RMSNorm", params_dtype=torch.bfloat16
    )
    x = _random(options, rows, width).requires_grad_()
    grad = _random(options, rows, outputs)
    with _autocast(te, options, recipe):
        y = module(x)
    y.backward(grad)
    mine = y, x.grad, module.weight.grad
    weight = module.weight.detach().float().requires_grad_()
    wide = x.detach().float().requires_grad_()
    expected = F.rms_norm(wide, (width,), eps=1e-5) @ weight.t()
    expected.backward(grad.float())
    names = "output", "gradient of the input", "gradient of the weight"
    _compare(report, recipe, names, mine, (expected, wide.grad, weight.grad))


def grouped_linear(options: Options, report: Report, recipe: str) -> None:
    """Its product of several experts' rows, of which one has none."""
    te = _transformer_engine(options)
    unit, width, outputs = (32, 64, 96) if options.tiny else (512, 2048, 1536)
    sizes = [unit, 0, 3 * unit, 2 * unit]
    module = te.GroupedLinear(len(sizes), width, outputs, bias=False, params_dtype=torch.bfloat16)
    weights = [getattr(module, f"weight{i}") for i in range(len(sizes))]
    x = _random(options, sum(sizes), width).requires_grad_()
    grad = _random(options, sum(sizes), outputs)
    with _autocast(te, options, recipe):
        y = module(x, sizes)
    y.backward(grad)
    wide = x.detach().float().requires_grad_()
    parts = zip(wide.split(sizes), weights, strict=True)
    expected = torch.cat([rows @ weight.detach().float().t() for rows, weight in parts])
    expected.backward(grad.float())
    names = "output", "gradient of the input"
    _compare(report, recipe, names, (y, x.grad), (expected, wide.grad))
    empty = weights[1].grad
    report.check("gradient of an expert without rows", 0.0 if empty is None else _size(empty), 0.0)


def attention(options: Options, report: Report, packed: bool) -> None:
    """Its attention against torch's formula: causal rows, or documents that follow each other."""
    te = _transformer_engine(options)
    lengths = [40, 24] if options.tiny else [1024, 512, 2048, 512]
    N, G, D, T = 4, 2, 128, sum(lengths)
    q, k, v = (_random(options, T, n, D).requires_grad_() for n in (N, G, G))
    grad = _random(options, T, N * D)
    layout = "thd" if packed else "bshd"
    mask = "padding_causal" if packed else "causal"
    module = te.DotProductAttention(
        N, D, num_gqa_groups=G, attention_dropout=0.0, qkv_format=layout, attn_mask_type=mask
    )
    if packed:
        ends = torch.tensor([0, *lengths], device=q.device).cumsum(0).int()
        told = {"cu_seqlens_q": ends, "cu_seqlens_kv": ends}
        told |= {"max_seqlen_q": max(lengths), "max_seqlen_kv": max(lengths)}
        mixed = module(q, k, v, **told)
    else:
        mixed = module(*(x[None] for x in (q, k, v)))
    mixed.reshape(T, N * D).backward(grad)
    mine = mixed.reshape(T, N * D), q.grad, k.grad, v.grad
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    parts = [x.split(lengths if packed else [T]) for x in wide]
    expected = torch.cat([_attend(*part) for part in zip(*parts, strict=True)])
    expected.backward(grad.float())
    names = "output", "gradient of queries", "gradient of keys", "gradient of values"
    _compare(report, "bf16", names, mine, (expected, *(x.grad for x in wide)))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of one text, float32 [T, N·D]."""
    heads = [x.transpose(0, 1) for x in (q, k, v)]
    mixed = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    return mixed.transpose(0, 1).flatten(1)


def _transformer_engine(options: Options) -> Any:
    try:
        import transformer_engine.pytorch as te
    except ImportError as error:
        if options.device == "cuda" and _version("transformer-engine"):
            raise  # it is installed, and does not load
        raise LeftOut(f"Transformer Engine is not installed ({error})") from None
    return te


def _autocast(te: Any, options: Options, recipe: str) -> Any:
    from transformer_engine.common import recipe as recipes

    if recipe == "bf16":
        return te.fp8_autocast(enabled=False)
    if options.device == "cpu" and recipe in OF_A_GPU_ALONE:
        raise LeftOut("a CPU has no kernels of it")
    kinds = {
        "tensorwise": recipes.Float8CurrentScaling,
        "delayed": recipes.DelayedScaling,
        "blockwise": recipes.Float8BlockScaling,
        "mxfp8": recipes.MXFP8BlockScaling,
        "nvfp4": recipes.NVFP4BlockScaling,
    }
    asked = {
        "blockwise": "is_fp8_block_scaling_available",
        "mxfp8": "is_mxfp8_available",
        "nvfp4": "is_nvfp4_available",
    }
    available = getattr(te, asked.get(recipe, "is_fp8_available"))
    can, why = available(return_reason=True)
    if not can:
        raise LeftOut(f"this chip cannot: {why}")
    return te.fp8_autocast(enabled=True, fp8_recipe=kinds[recipe]())


def _compare(
    report: Report,
    recipe: str,
    names: tuple[str, ...],
    mine: tuple[Any, ...],
    expected: tuple[Any, ...],
) -> None:
    at_most = _OFF.get(recipe, _OFF_IN_FP8)
    for name, x, reference in zip(names, mine, expected, strict=True):
        off = _size(x.detach().float() - reference.detach()) / _size(reference.detach())
        report.check(name, off, at_most)


def _size(x: Tensor) -> float:
    return x.double().norm().item()


def _random(options: Options, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(options.device, torch.bfloat16)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _said_by(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
