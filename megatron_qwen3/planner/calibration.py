"""The measured constants of the model of time, each with its meaning and plausible range.

    constants = load()

All are physical: shares of a peak rate that kernels reach, seconds of latency, shares of
communication that stay visible. `mq3 study fit` sets them from published runs and
writes calibration.toml; none belongs to a single run, model or GPU name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from megatron_qwen3.storage.whole import write_whole
from megatron_qwen3.toml import read_toml

PATH: Final = Path(__file__).with_name("calibration.toml")


def constant(prior: float, spread: float, help: str) -> Any:
    """A constant that is expected at `prior`, within a factor of about e^±spread."""
    return {"prior": prior, "spread": spread, "help": help}


# Share of the dense peak that a large product reaches, by generation and arithmetic.
CONSTANTS: Final[dict[str, dict[str, Any]]] = {
    "gemm_ampere_bf16": constant(0.80, 0.1, "share of the peak of large products"),
    "gemm_hopper_bf16": constant(0.75, 0.1, "the same"),
    "gemm_hopper_fp8": constant(0.65, 0.15, "the same"),
    "gemm_blackwell_bf16": constant(0.70, 0.15, "the same"),
    "gemm_blackwell_fp8": constant(0.62, 0.2, "the same"),
    "gemm_blackwell_fp4": constant(0.55, 0.3, "the same"),
    "grouped": constant(0.85, 0.15, "products of many experts against one large product"),
    "early_software": constant(0.85, 0.1, "rate of a chip's first software against today's"),
    "power": constant(0.5, 0.4, "power of the rate by the chip's watts per TFLOP/s"),
    "half_dimension": constant(128, 0.6, "size of a dimension at which products reach half"),
    "attention_ampere": constant(0.55, 0.15, "share of the bf16 peak of attention"),
    "attention_hopper": constant(0.55, 0.2, "the same"),
    "attention_blackwell": constant(0.50, 0.2, "the same"),
    "attention_fp8": constant(1.4, 0.2, "rate of attention in FP8 against bf16"),
    "attention_sinks": constant(0.7, 0.4, "rate of attention with sinks against without"),
    "memory": constant(0.75, 0.15, "share of the memory bandwidth of element-wise kernels"),
    "experts_elementwise": constant(1.2, 0.3, "element-wise work of experts against the least"),
    "expert_bias": constant(2.0, 0.4, "the same with biases and clamps"),
    "fused_experts": constant(0.6, 0.3, "the same with fused kernels"),
    "nvlink": constant(0.75, 0.2, "share of NVLink's rate of large collectives"),
    "network": constant(0.75, 0.25, "share of InfiniBand's rate of large collectives"),
    "network_efa": constant(0.4, 0.4, "the same of EFA"),
    "exchange_fused": constant(0.65, 0.2, "exchange of tokens by fused kernels, of the link"),
    "exchange_alltoall": constant(0.6, 0.2, "exchange of tokens by NCCL, of the link"),
    "copies_efa_nvshmem": constant(2e4, 1.0, "tokens per second and GB/s of EFA by NVSHMEM"),
    "copies_efa_uccl": constant(2e4, 1.0, "the same by UCCL"),
    "exchange_latency_efa": constant(2e-4, 0.6, "seconds of latency of an exchange over EFA"),
    "exchange_hidden": constant(0.7, 0.15, "share of an overlapped exchange that is hidden"),
    "tensor_exposed": constant(0.5, 0.4, "share of tensor-parallel communication not hidden"),
    "context_exposed": constant(0.3, 0.5, "share of context-parallel communication not hidden"),
    "data_exposed": constant(0.2, 0.4, "share of gradient reduction that nothing hides"),
    "launch_attention": constant(0.8e-3, 0.5, "seconds to launch attention, both passes"),
    "launch_mlp": constant(0.3e-3, 0.5, "seconds to launch a dense MLP, both passes"),
    "launch_experts": constant(4e-3, 0.4, "seconds to launch router, exchange and experts"),
    "launch_low_precision": constant(1.4, 0.2, "launches with FP8 or FP4 against bf16"),
    "launch_alltoall": constant(1.3, 0.2, "launches with NCCL's exchange against fused ones"),
    "launch_unfused": constant(1.3, 0.2, "launches with NCCL's exchange and unfused sorting"),
    "launch_overlap": constant(1.2, 0.2, "launches where exchanges are overlapped"),
    "concurrency": constant(2.5, 0.3, "norm of device and host time: 1 is their sum, ∞ the larger"),
    "launch_grace": constant(1.0, 0.2, "launches from Grace against x86"),
    "launch_milan": constant(1.4, 0.25, "launches from AMD's Milan against Xeons of 2023 on"),
    "launch_efa": constant(1.3, 0.25, "launches on hosts whose threads send over EFA"),
    "launch_capacity": constant(0.45, 0.25, "launches of experts whose rows are known beforehand"),
    "launch_expert_bias": constant(1e-4, 0.7, "seconds to launch the biases of an expert"),
    "graph_partial": constant(0.5, 0.4, "launches that partial CUDA graphs leave"),
    "imbalance": constant(1.3, 0.2, "busiest rank's load over the mean with natural routing"),
    "slowdown_per_doubling": constant(0.006, 0.6, "jitter for each doubling of the GPUs"),
    "pipeline_slack": constant(1.03, 0.02, "irregularity of stages that wait for each other"),
}


def load(path: Path = PATH) -> dict[str, float]:
    """The constants by name."""
    found = read_toml(path, "the planner's constants")["constants"]
    return {name: float(found[name]) for name in CONSTANTS}


def write(constants: Mapping[str, float], path: Path) -> None:
    """Write the constants with four digits each."""
    lines = ["# Written by `mq3 study fit`; calibration.py says what each means."]
    lines += ["", "[constants]"]
    lines += [f"{name} = {float(f'{constants[name]:.4g}')!r}" for name in CONSTANTS]
    write_whole(path, ["\n".join([*lines, ""]).encode()])
