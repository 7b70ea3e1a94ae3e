"""Removes passes over all gradients that a training step on a CPU does not need.

megatron-core adds weight gradients to its buffer, which is zeroed before each step, within the
matrix product if apex's CUDA extension is there, and reduces gradients over a data-parallel group
of one rank by copying them to themselves. `provide_weight_gradient` comes before megatron-core is
imported, `skip_lone_ranks` after: `redirect.py` calls both. `fuse_weight_gradients` is for models
with gradient buffers, `check_written` comes after their passes; `gather_wide_first` is for weights
in FP8, which data ranks gather in tests.
"""

import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megatron_qwen3.cpu.products import write_product

_EXTENSION = "fused_weight_gradient_mlp_cuda"


def provide_weight_gradient() -> None:
    """Stand in for apex's extension, for TransformerConfig(gradient_accumulation_fusion=True)."""
    module: Any = types.ModuleType(_EXTENSION)
    module.wgrad_gemm_accum_fp32 = module.wgrad_gemm_accum_fp16 = add_weight_gradient
    sys.modules.setdefault(_EXTENSION, module)


def add_weight_gradient(input_RI: Tensor, grad_RO: Tensor, main_grad_OI: Tensor) -> None:
    """main_grad += gradᵀ · input over R rows, or = where it holds the last step's gradient."""
    write_product(main_grad_OI, grad_RO.t(), input_RI, adds=not take_old(main_grad_OI))


def take_old(main_grad: Tensor) -> bool:
    """Whether it still holds the last step's gradient; the caller then writes this step's."""
    old: bool = getattr(main_grad, "is_old", False)
    main_grad.is_old = False  # type: ignore[attr-defined]
    return old


def fuse_weight_gradients(chunk: Any) -> None:
    """Let the backward pass of a DDP chunk on a CPU write matrices' gradients into `main_grad`.

    The first product of a step writes over the last step's gradient and the others add to it:
    zeroing the buffer, and reading the zeros again, is left to the parameters without products.
    """
    chunk.module.config.gradient_accumulation_fusion = True
    written = set()
    for module in chunk.modules():
        if hasattr(module, "gradient_accumulation_fusion"):
            module.gradient_accumulation_fusion = True
            written.update(module.parameters(recurse=False))
    for buffer in chunk.buffers + chunk.expert_parallel_buffers:
        buffer.reset = partial(_begin_step, buffer, written & set(buffer.params))


def _begin_step(buffer: Any, written: set[Any]) -> None:
    """Replaces the zeroing of megatron-core's whole gradient buffer."""
    for parameter in written:
        parameter.main_grad.is_old = True
    end = 0
    for start, next_end in sorted(buffer.param_index_map[p][:2] for p in written):
        buffer.grad_data[end:start].zero_()
        end = next_end
    buffer.grad_data[end:].zero_()


def gather_wide_first(chunk: Any) -> None:
    """Make gloo gather 8-bit weights after others: together they are sent in the first one's dtype,
    and a byte fits into bf16, but not the other way round. NCCL gathers each by itself."""
    for group in chunk.bucket_groups + chunk.expert_parallel_bucket_groups:
        group.buckets.sort(key=_is_bytes)


def _is_bytes(bucket: Any) -> bool:
    data = bucket.param_data  # None without the distributed optimizer
    return data is not None and data.dtype == torch.uint8


def check_written(chunk: Any) -> None:
    """RuntimeError where a step's passes left a parameter without a gradient."""
    for name, parameter in chunk.module.named_parameters():
        if getattr(getattr(parameter, "main_grad", None), "is_old", False):
            raise RuntimeError(f"{name} has got no gradient in this step")


def skip_lone_ranks() -> None:
    """Let a group of one rank neither scatter its gradients nor gather its parameters."""
    from megatron.core.distributed import param_and_grad_buffer as buffers

    for name in ("dist_reduce_scatter_func", "dist_all_gather_func"):
        setattr(buffers, name, _unless_alone(getattr(buffers, name)))


def _unless_alone(collective: Callable[..., Any]) -> Callable[..., Any]:
    def call(output: Tensor, source: Tensor, *args: Any, group: Any, **kwargs: Any) -> Any:
        in_place = output.data_ptr() == source.data_ptr()
        if in_place and group.size() == 1:
            return _Done() if kwargs.get("async_op") else None
        return collective(output, source, *args, group=group, **kwargs)

    return call


class _Done:
    """The handle of skipped work."""

    def wait(self) -> None:
        pass
