"""Linears of a model that only generates: `with light_linears(models): …`.

megatron-core's linears prepare a backward pass with every call, which costs more than the product
of a few rows. Here a linear is its product and, across tensor ranks, its sum. On a CPU large
weights are packed besides: the products of one token per row read all weights for a handful of
rows, which oneDNN does twice as fast from its own order of a weight as MKL from ours. That takes
room for a second copy of those weights while a generation lasts.

Legend: S places, B rows, I inputs and O outputs of this tensor rank.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_qwen3.cpu import kernels
from megatron_qwen3.cpu.products import product
from megatron_qwen3.model.build import Qwen3
from megatron_qwen3.model.logits import OutputLayer
from megatron_qwen3.parallel.mcore import ColumnParallelLinear, RowParallelLinear

# Measured on one and two cores with AVX-512: below either, packing gains nothing.
_LEAST_PACKED_WEIGHTS, _LEAST_PACKED_ROWS = 1 << 20, 4


@contextmanager
def light_linears(models: list[Qwen3]) -> Iterator[None]:
    """Linears without a way back, on whole sequences; afterwards they are as before."""
    replaced = []
    for model in models:
        for module in model.modules():
            if isinstance(module, OutputLayer):  # which leaves its product to heads
                continue
            if isinstance(module, (ColumnParallelLinear, RowParallelLinear)):
                kind = _row if isinstance(module, RowParallelLinear) else _column
                module.forward = partial(kind, _Product(module.weight), module)
                replaced.append(module)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


class _Product:
    """x_SBI -> x · weightᵀ, [S, B, O]."""

    def __init__(self, weight_OI: Tensor) -> None:
        self.weight_OI = weight_OI.detach()
        self.packed: Tensor | None = None
        self.is_packable = (
            kernels.has_packed_product(weight_OI) and weight_OI.numel() >= _LEAST_PACKED_WEIGHTS
        )

    def __call__(self, x_SBI: Tensor) -> Tensor:
        S, B, width = x_SBI.shape
        if S > 1 or B < _LEAST_PACKED_ROWS or not self.is_packable:
            # In two dimensions: torch takes other strides of three for a batch of products.
            return product(x_SBI.reshape(-1, width), self.weight_OI.t()).view(S, B, -1)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight_OI, B)
        return torch.ops.mkldnn._linear_pointwise(x_SBI, self.packed, None, "none", [], "")


def _column(product: _Product, module: Any, x_SBI: Tensor, **_: Any) -> tuple[Tensor, None]:
    """Each tensor rank's own outputs of the same input."""
    return product(x_SBI), None


def _row(product: _Product, module: Any, x_SBI: Tensor) -> tuple[Tensor, None]:
    """The sum of what the tensor ranks make of their own inputs."""
    output_SBO = product(x_SBI)
    if module.tp_group.size() > 1:
        dist.all_reduce(output_SBO, group=module.tp_group)
    return output_SBO, None
