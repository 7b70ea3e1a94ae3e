"""Overlap of communication: arguments for megatron-core's configurations, and further set-up.


    check(config)                             # before any rank joins; ConfigError
    TransformerConfig(…, **of_model(config))
    DistributedDataParallelConfig(…, **of_gradients(config))
    begin(config, layout)                     # after the process groups, before the model

README.md beside this file explains each setting's effect and when it pays, `validate_overlap.py`
their combinations.
"""

import importlib
import os
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch

from megatron_qwen3 import launcher
from megatron_qwen3.parallel import installed
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.parallel.mcore import TransformerConfig, TransformerLayer, tensor_parallel
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.validate_overlap import cpu_faults, multicast_faults

# torch reads either; NCCL cannot register a segment that grows.
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_GROWS = "expandable_segments:True"
# Transformer Engine from 2.10 on sends weights to the host, too, unless told to use older code.
OLD_OFFLOAD = "NVTE_CPU_OFFLOAD_V1"
# NCCL registers the buffers that a graph's collectives use, which is impossible for memory that
# grows.
GRAPH_BUFFERS = "NCCL_GRAPH_REGISTER"
# megatron-core 0.19 has another name for it.
_GRAPHED = next(
    name
    for name in ("cuda_graph_modules", "cuda_graph_scope")
    if name in {field.name for field in fields(TransformerConfig)}
)


def check(config: Config) -> None:
    """ConfigError where this machine, or its software, does not support the settings."""
    if not torch.cuda.is_available() and (faults := [*cpu_faults(config, "torch sees none")]):
        raise ConfigError("\n".join(faults))
    installed.check(config)
    if faults := [*_environment_faults(config), *_buffer_faults(config)]:
        raise ConfigError("\n".join(faults))


def of_model(config: Config) -> dict[str, object]:
    """Arguments for megatron-core's TransformerConfig."""
    overlap = config.overlap
    told: dict[str, object] = {}
    if overlap.tensor:
        told["tp_comm_overlap"] = True
    if overlap.experts:
        told["overlap_moe_expert_parallel_comm"] = True
        told["delay_wgrad_compute"] = overlap.delay_weight_gradients
    if overlap.cuda_graphs:
        told["cuda_graph_impl"] = "transformer_engine"
        told[_GRAPHED] = [*overlap.cuda_graphs]
    if overlap.offload_parts:
        told["fine_grained_activation_offloading"] = True
        told["offload_modules"] = [*overlap.offload_parts]
    if overlap.offload_layers:
        told["cpu_offloading"] = True
        told["cpu_offloading_num_layers"] = overlap.offload_layers
    return told


def of_gradients(config: Config) -> dict[str, object]:
    """Arguments for megatron-core's DistributedDataParallelConfig."""
    overlap = config.overlap
    return {
        "nccl_ub": overlap.nccl_buffers,
        "delay_wgrad_compute": overlap.delay_weight_gradients,
    }


def begin(config: Config, layout: Layout) -> None:
    """Set up state that Transformer Engine's layers read when they are made: with overlap.tensor
    its buffers, for a micro-batch of full rows, which all ranks make together; with
    overlap.cuda_graphs its random states, which graphs can hold, unlike megatron-core's."""
    if config.overlap.cuda_graphs:
        tensor_parallel.model_parallel_cuda_manual_seed(
            config.run.seed, te_rng_tracker=True, force_reset_rng=True
        )
    if not config.overlap.tensor:
        return
    from transformer_engine.pytorch.module import base

    fp8, modes = config.fp8, base.UserBufferQuantizationMode
    has_fp8 = fp8.is_on and fp8.recipe != "nvfp4"
    asked: list[Any] = [modes.FP8] if has_fp8 else [modes.NONE]
    if has_fp8 and (fp8.first_layers_bf16 or fp8.last_layers_bf16):
        asked.append(modes.NONE)
    rows = config.data.sequence_length * config.train.micro_batch // layout.context
    base.destroy_ub()  # of a model that this process trained before
    base.initialize_ub(
        shape=[rows, config.model.hidden_size],
        tp_size=layout.tensor,
        quantization_modes=asked,
        dtype=torch.bfloat16,
        bootstrap_backend=torch.distributed.get_backend(),
    )


def _buffer_faults(config: Config) -> Iterator[str]:
    """Faults that Transformer Engine would raise only once the ranks have met."""
    if config.overlap.tensor and torch.cuda.is_available():
        kernels = importlib.import_module("transformer_engine_torch")
        able = kernels.device_supports_multicast(launcher.local_rank())
        yield from multicast_faults(config, "this machine (GPU, NVSwitch, driver, CUDA)", able)


def _environment_faults(config: Config) -> Iterator[str]:
    for name in _ALLOCATOR:
        if config.overlap.nccl_buffers and _GROWS in os.environ.get(name, ""):
            yield (
                f"overlap.nccl_buffers = true, and the environment has {name} = "
                f"{os.environ[name]}: memory that grows cannot be NCCL's; set "
                f"{name}=expandable_segments:False, or leave overlap.nccl_buffers out"
            )
        kept = os.environ.get(GRAPH_BUFFERS, "")
        if config.overlap.cuda_graphs and _GROWS in os.environ.get(name, "") and kept != "0":
            yield (
                f"overlap.cuda_graphs, and the environment has {name} = {os.environ[name]} and "
                f'{GRAPH_BUFFERS} = "{kept}": NCCL would keep places of memory that grows; set '
                f"{GRAPH_BUFFERS}=0, or leave overlap.cuda_graphs out"
            )
    knows_four_bits = hasattr(TransformerLayer, "get_inner_quantization_context")
    if config.overlap.experts and config.fp8.recipe == "nvfp4" and not knows_four_bits:
        yield (
            'overlap.experts = true and fp8.recipe = "nvfp4": this megatron-core leaves layers '
            "that it takes apart in bf16; pip install 'megatron-core>=0.19', or leave one of them "
            "out"
        )
    if config.overlap.offload_parts and os.environ.get(OLD_OFFLOAD) != "1":
        yield (
            f"overlap.offload_parts, and the environment has {OLD_OFFLOAD} = "
            f'"{os.environ.get(OLD_OFFLOAD, "")}": Transformer Engine would send weights, too; '
            f"set {OLD_OFFLOAD}=1"
        )
