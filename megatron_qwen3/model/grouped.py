"""Arithmetic of a mixture of experts on rows sorted by expert: sort, spread, compute, collect.

Pure functions without groups or ranks; `experts.py` puts the exchange between ranks around them:

    order = sort_by_expert(experts_TK, E)
    rows_RH = scatter_tokens(hidden_TH, order)
    output_TH = gather_tokens(experts(rows_RH, probs_R, order.counts, weight1, weight2), order)

Spreading and collecting are each other's derivative, so neither needs a scatter with atomic or
sequential additions, and in bf16 on a GPU the products of all experts are one grouped product.

Legend: T tokens, K experts per token, R = T·K rows, E experts, H hidden, F width of an expert.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from megatron_qwen3.cpu import kernels
from megatron_qwen3.cpu.products import grouped_product, write_product
from megatron_qwen3.cpu.shortcuts import take_old
from megatron_qwen3.model import ops
from megatron_qwen3.model.gate_and_up import cut


class Order(NamedTuple):
    """A stable sort of the R (token, choice) pairs by expert."""

    rows: Tensor  # [R] flat index t·K + k of the pair that stands at each sorted place
    places: Tensor  # [T, K] sorted place of each pair: the inverse of `rows`
    counts: Tensor  # [E] int64, rows of each expert


def sort_by_expert(experts_TK: Tensor, num_experts: int) -> Order:
    """Sort the chosen experts; ties keep the order of the tokens, so results are repeatable."""
    flat = experts_TK.flatten()
    rows = flat.argsort(stable=True)
    places = torch.empty_like(rows)
    places[rows] = torch.arange(rows.numel(), device=rows.device)
    counts = torch.zeros(num_experts, dtype=torch.int64, device=rows.device)
    # Not bincount, which waits for a GPU to learn how long its result is.
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    return Order(rows, places.view_as(experts_TK), counts)


def scatter_tokens(hidden_TH: Tensor, order: Order) -> Tensor:
    """[T, H] -> [R, H]: every token once per expert that it goes to, sorted by expert."""
    spread = _Scatter.apply if torch.is_grad_enabled() else _spread
    return spread(hidden_TH, order.rows, order.places)


def gather_tokens(rows_RH: Tensor, order: Order) -> Tensor:
    """[R, H] -> [T, H]: the sum of each token's K rows, from sorted order back to token order."""
    if torch.is_grad_enabled():
        return _Gather.apply(rows_RH, order.rows, order.places)
    return _collect(rows_RH, order.places)


def experts(
    rows_RH: Tensor,
    probs_R: Tensor,
    counts_E: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    accumulate: bool = False,
) -> Tensor:
    """p · down_e(silu(gate_e x) * up_e x) for rows sorted by expert -> [R, H].

    weight1 [E, 2F, H] holds [gate; up], weight2 [E, H, F]; counts sum to R, any may be zero.
    The probability multiplies the F-wide activation, which equals multiplying the output.
    accumulate: on a CPU, add the weights' gradients to their `main_grad` within the product, as
    megatron-core's gradient_accumulation_fusion does, and mark them `grad_added_to_main_grad`.
    """
    if torch.is_grad_enabled():
        return _Experts.apply(rows_RH, probs_R, counts_E, weight1, weight2, accumulate)
    return _experts(rows_RH, probs_R, _groups(rows_RH, counts_E), weight1, weight2)[0]


class _Scatter(Function):
    @staticmethod
    def forward(ctx, hidden, rows, places):
        ctx.save_for_backward(rows, places)
        return _spread(hidden, rows, places)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return _collect(grad, ctx.saved_tensors[1]), None, None


class _Gather(Function):
    @staticmethod
    def forward(ctx, rows_RH, rows, places):
        ctx.save_for_backward(rows, places)
        return _collect(rows_RH, places)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return _spread(grad, *ctx.saved_tensors), None, None


def _spread(hidden: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    return F.embedding(rows // places.shape[1], hidden)


def _collect(rows_RH: Tensor, places: Tensor) -> Tensor:
    """Sum K rows per token, as an embedding bag does: without a [T, K, H] tensor between."""
    if places.shape[1] == 1:
        return F.embedding(places.flatten(), rows_RH)
    if rows_RH.dtype == torch.float64:  # gradient checks; bags there are not vectorised or exact
        return rows_RH[places].sum(1)
    return F.embedding_bag(places, rows_RH.contiguous(), mode="sum")


def _experts(
    rows: Tensor, probs: Tensor, groups: Tensor | list[int], weight1: Tensor, weight2: Tensor
) -> tuple[Tensor, Tensor]:
    """The experts' outputs, and gate_up, which their gradients begin with."""
    gate_up = _product(rows, weight1.mT, groups)
    activated = ops.swiglu_value(gate_up).mul_(probs[:, None])
    return _product(activated, weight2.mT, groups), gate_up


class _Experts(Function):
    """Saves the rows and gate_up; the activation is computed again in backward."""

    @staticmethod
    def forward(ctx, rows, probs, counts, weight1, weight2, accumulate):
        groups = _groups(rows, counts)
        output, gate_up = _experts(rows, probs, groups, weight1, weight2)
        ctx.groups, ctx.accumulate = groups, accumulate
        ctx.save_for_backward(rows, probs, gate_up, weight1, weight2)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, probs, gate_up, weight1, weight2 = ctx.saved_tensors
        grad = grad.contiguous()
        gate, up = cut(gate_up)
        silu = F.silu(gate)
        activated = silu * up
        grad_activated = _product(grad, weight2, ctx.groups)
        grad_probs = _dot(grad_activated, activated).to(probs.dtype)
        activated.mul_(probs[:, None])
        grad_weight2 = _weight_gradient(grad, activated, weight2, ctx)
        del activated
        grad_gate_up = ops.swiglu_gradient(gate_up, grad_activated.mul_(probs[:, None]), silu)
        grad_weight1 = _weight_gradient(grad_gate_up, rows, weight1, ctx)
        grad_rows = _product(grad_gate_up, weight1, ctx.groups)
        return grad_rows, grad_probs, None, grad_weight1, grad_weight2, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot products of rows, in float32 at least: they are the router's gradient."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    return torch.linalg.vecdot(a.to(dtype), b.to(dtype))


def _groups(rows: Tensor, counts: Tensor) -> Tensor | list[int]:
    """Boundaries of the experts' rows: ends of groups on a GPU, without waiting for it; else sizes.

    A GPU's grouped product takes only bf16: in float32 the host waits for the sizes, and loops.
    """
    return counts.cumsum(0).int() if kernels.has_grouped_product(rows) else counts.tolist()


def _product(rows_RI: Tensor, weight_EIO: Tensor, groups: Tensor | list[int]) -> Tensor:
    """Each expert's rows times its matrix -> [R, O]."""
    if isinstance(groups, Tensor):
        return F.grouped_mm(rows_RI, weight_EIO, offs=groups)
    return grouped_product(rows_RI, weight_EIO, groups)


def _weight_gradient(grad_RO: Tensor, rows_RI: Tensor, weight_EOI: Tensor, ctx) -> Tensor:
    """gradᵀ · rows within each expert -> [E, O, I]; zero for an expert without rows."""
    groups = ctx.groups
    if isinstance(groups, Tensor):
        gradient = F.grouped_mm(grad_RO.mT, rows_RI, offs=groups)
        # Some kernels leave the gradient of an empty group unwritten (pytorch #172439).
        empty = torch.diff(groups, prepend=groups.new_zeros(1)) == 0
        return gradient.masked_fill_(empty[:, None, None], 0)
    gradient = torch.empty_like(weight_EOI)
    total = weight_EOI.main_grad if ctx.accumulate else gradient
    adds = ctx.accumulate and not take_old(total)
    for grad, rows, out in zip(grad_RO.split(groups), rows_RI.split(groups), total, strict=True):
        write_product(out, grad.t(), rows, adds)
    if ctx.accumulate:
        weight_EOI.grad_added_to_main_grad = True  # the returned tensor is never read
    return gradient
