"""Gradients of hidden states and of the output matrix, one tile of logits at a time.

    of_hidden_TH, of_weight_vH = multiplied(of_logits, hidden_TH, weight_vH, tiles, needs)

The gradient of a tile's logits is multiplied at once, into sums that exist once: the matrix's sum
is in megatron-core's buffer, if there is one. `tiles.py` and `divergence.py` call it.

Legend: T positions, H hidden size, v this tensor rank's slice of the vocabulary; n positions and w
columns of one tile.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_qwen3.cpu.products import write_product
from megatron_qwen3.cpu.shortcuts import take_old

Tiles = tuple[list[slice], list[slice]]  # of positions, and of columns


def multiplied(
    of_logits: Callable[[slice, slice], Tensor],
    hidden_TH: Tensor,
    weight_vH: Tensor,
    tiles: Tiles,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of hidden and weight, from those of the logits of one tile after the other."""
    row_tiles, column_tiles = tiles
    of_hidden_TH = torch.empty_like(hidden_TH) if needs[0] else None
    of_weight_vH, adds = _sum_of_weight(weight_vH, len(row_tiles)) if needs[1] else (None, False)
    for rows in row_tiles:
        hidden_nH, sum_nH = hidden_TH[rows], None
        if of_hidden_TH is not None:
            dtype = _precise(hidden_nH, len(column_tiles))
            sum_nH = of_hidden_TH[rows]
            if dtype != hidden_nH.dtype:
                sum_nH = torch.empty_like(hidden_nH, dtype=dtype)
        for columns in column_tiles:
            grad_nw = of_logits(rows, columns)
            if sum_nH is not None:
                write_product(sum_nH, grad_nw, weight_vH[columns], adds=columns.start > 0)
            if of_weight_vH is not None:
                adds_here = adds or rows.start > 0
                write_product(of_weight_vH[columns], grad_nw.t(), hidden_nH, adds=adds_here)
            del grad_nw  # before the next one is made
        if of_hidden_TH is not None and sum_nH is not None and sum_nH.dtype != hidden_nH.dtype:
            of_hidden_TH[rows] = sum_nH
    return of_hidden_TH, None if of_weight_vH is None else _for_autograd(weight_vH, of_weight_vH)


def _precise(x: Tensor, summands: int) -> torch.dtype:
    """The type in which this number of summands of x's gradient is added up."""
    return x.dtype if summands == 1 else torch.promote_types(x.dtype, torch.float32)


def _sum_of_weight(weight_vH: Tensor, summands: int) -> tuple[Tensor, bool]:
    """The tensor for the sum of the weight's gradient, and whether it holds a gradient to add to.

    It is megatron-core's buffer if there is one, which saves a second matrix of that size.
    """
    if hasattr(weight_vH, "grad_added_to_main_grad"):
        return weight_vH.main_grad, not take_old(weight_vH.main_grad)
    return torch.empty_like(weight_vH, dtype=_precise(weight_vH, summands)), False


def _for_autograd(weight_vH: Tensor, sum_vH: Tensor) -> Tensor:
    """The gradient; or, if it is in megatron-core's buffer, the stand-in that its hooks expect.

    The hooks only run if autograd gets a gradient, and add it to the buffer if the embedding's
    gradient comes with it (`zero_out_wgrad`). Autograd keeps it until then, through the backward
    pass of all layers: so it is a single zero, viewed as a matrix.

    """
    if not hasattr(weight_vH, "grad_added_to_main_grad"):
        return sum_vH.to(weight_vH.dtype)
    weight_vH.grad_added_to_main_grad = True
    if getattr(weight_vH, "zero_out_wgrad", False):
        return weight_vH.new_zeros(()).expand_as(weight_vH)
    return torch.empty_like(weight_vH)
