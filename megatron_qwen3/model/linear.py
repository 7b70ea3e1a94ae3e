"""A layer's linears: as modules in training, or as bare products for generation.

    qkv_SBO = linear(self.linear_qkv, hidden_SBH, products)

megatron-core's linears prepare a backward pass with every call, which costs more than the product
of a few rows. With `Products` a linear is a product and, across tensor ranks, a sum; without it the
module is called, with its hooks. `Products` belongs to one generation and reaches the layers within
`Sequences`: its copies of weights are as the weights were then.

Legend: S places, B rows, I inputs and O outputs of this tensor rank.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_qwen3.cpu import kernels
from megatron_qwen3.cpu.products import product
from megatron_qwen3.parallel.mcore import RowParallelLinear

# Measured on one and two cores with AVX-512: below either, packing gains nothing.
_LEAST_PACKED_WEIGHTS, _LEAST_PACKED_ROWS = 1 << 20, 4


class Products:
    """Products with weights that do not change meanwhile, on whole sequences.

    On a CPU large weights are packed: the products of one token per row read all weights for a
    handful of rows, which oneDNN does twice as fast from its own order of a weight as MKL from
    ours. That takes room for a second copy of those weights.
    """

    def __init__(self) -> None:
        self._packed: dict[Tensor, Tensor] = {}

    def of(self, x_SBI: Tensor, weight_OI: Tensor) -> Tensor:
        """x · weightᵀ, [S, B, O]; without gradients."""
        S, B, width = x_SBI.shape
        if S > 1 or B < _LEAST_PACKED_ROWS or not _is_packable(weight_OI):
            # In two dimensions: torch takes other strides of three for a batch of products.
            return product(x_SBI.reshape(-1, width), weight_OI.t()).view(S, B, -1)
        if weight_OI not in self._packed:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), B)
            self._packed[weight_OI] = packed
        return torch.ops.mkldnn._linear_pointwise(
            x_SBI, self._packed[weight_OI], None, "none", [], ""
        )


def linear(module: nn.Module, x_SBI: Tensor, products: Products | None = None) -> Tensor:
    """The output of a column- or row-parallel linear without bias, [S, B, O].

    With `products` nothing is recorded for a backward pass, and sequence parallelism is off.
    """
    if products is None:
        output, _ = module(x_SBI)
        return output
    output_SBO = products.of(x_SBI, module.weight)
    group: Any = module.tp_group
    if isinstance(module, RowParallelLinear) and group.size() > 1:
        dist.all_reduce(output_SBO, group=group)
    return output_SBO


def _is_packable(weight_OI: Tensor) -> bool:
    return weight_OI.numel() >= _LEAST_PACKED_WEIGHTS and kernels.has_packed_product(weight_OI)
