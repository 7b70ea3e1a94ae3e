"""Two passes over all gradients that a training step on a CPU can do without.

megatron-core adds weight gradients to its buffer within the matrix product if a CUDA extension of
apex is there, and reduces gradients over a data-parallel group of one rank by copying them to
themselves. `provide_weight_gradient` comes before megatron-core is imported, `skip_lone_ranks`
after: `cpu.py` calls both. `fuse_weight_gradients` is for models that have gradient buffers.
"""

import sys
import types
from collections.abc import Callable
from typing import Any

from torch import Tensor

_EXTENSION = "fused_weight_gradient_mlp_cuda"


def provide_weight_gradient() -> None:
    """Stand in for apex's extension, for TransformerConfig(gradient_accumulation_fusion=True)."""
    module: Any = types.ModuleType(_EXTENSION)
    module.wgrad_gemm_accum_fp32 = module.wgrad_gemm_accum_fp16 = add_weight_gradient
    sys.modules.setdefault(_EXTENSION, module)


def add_weight_gradient(input_RI: Tensor, grad_RO: Tensor, main_grad_OI: Tensor) -> None:
    """main_grad += gradᵀ · input over R rows, in one product where the types are equal."""
    if main_grad_OI.dtype == grad_RO.dtype:
        main_grad_OI.addmm_(grad_RO.t(), input_RI)
    else:
        main_grad_OI.add_(grad_RO.t() @ input_RI)


def fuse_weight_gradients(model: Any) -> None:
    """Let the backward pass of a model on a CPU write into `main_grad`, which must be there."""
    model.config.gradient_accumulation_fusion = True
    for module in model.modules():
        if hasattr(module, "gradient_accumulation_fusion"):
            module.gradient_accumulation_fusion = True


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
    """The handle of work that was none."""

    def wait(self) -> None:
        pass
