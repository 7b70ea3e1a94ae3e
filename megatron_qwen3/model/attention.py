"""Causal attention of rows, or of the stretches that rows are cut into.

    mixed_SBW = attention(q_SBND, k_SBGD, v_SBGD)               # each row is one text
    mixed_SBW = attention(q_SBND, k_SBGD, v_SBGD, stretches)    # several; see stretches.py

Nothing of size S×S is made, in memory or as a mask: a stretch is a causal square of its own, and
time goes with the sum of their squares. On a CPU each is one call of torch's fused kernel, a GPU
takes all in one call. Both give the logarithm of the softmax's denominator beside the result,
which their backward passes begin with.

Shapes: S sequence, B batch, N query heads, G key/value groups, D head size, W = N·D, T = B·S.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from megatron_qwen3.cpu import kernels
from megatron_qwen3.model.stretches import Run, Stretches

_aten = torch.ops.aten


def attention(
    q_SBND: Tensor, k_SBGD: Tensor, v_SBGD: Tensor, stretches: Stretches | None = None
) -> Tensor:
    """softmax(q kᵀ / √D) v over what each place sees, [S, B, W]: its stretch up to itself.

    Query head n reads group n // (N/G). Without stretches a row is one text. ValueError where
    `stretches` are of other rows than q.
    """
    if stretches is None:
        return _whole_rows(q_SBND, k_SBGD, v_SBGD)
    S, B = q_SBND.shape[:2]
    if (stretches.rows, stretches.length) != (B, S):
        raise ValueError(
            f"stretches of {stretches.rows} rows of {stretches.length} places for "
            f"{B} rows of {S} places"
        )
    if kernels.has_attention_of_cpu(q_SBND):
        return _Squares.apply(q_SBND, k_SBGD, v_SBGD, stretches.runs).flatten(2)
    packed = _packed if kernels.has_packed_attention(q_SBND) else one_by_one
    return packed(q_SBND, k_SBGD, v_SBGD, stretches)


def _whole_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if not kernels.attention_knows_groups(q):
        k, v = (_for_each_head(x, q) for x in (k, v))
    q, k, v = (x.permute(1, 2, 0, 3).contiguous() for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    return mixed.permute(2, 0, 1, 3).flatten(2)


def _for_each_head(x_SBGD: Tensor, q_SBND: Tensor) -> Tensor:
    return x_SBGD.repeat_interleave(q_SBND.shape[2] // x_SBGD.shape[2], dim=2)


class _Squares(Function):
    """Stretches on a CPU, each run of equal ones by one call, [S, B, N, D].

    Keeps q, k, v, the result and one number per query. Autograd through slices would make a
    gradient as long as all rows for every stretch.
    """

    @staticmethod
    def forward(ctx, q, k, v, runs):
        q, k, v = (_readable(x) for x in (q, k, v))
        S, B, N, _ = q.shape
        mixed = q.new_empty(q.shape)
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        lse = q.new_empty(B, N, S, 1, dtype=wide).permute(2, 0, 1, 3)
        for run in runs:
            inputs = (_batch_of(run, x) for x in (q, k, v))
            part, part_lse = _aten._scaled_dot_product_flash_attention_for_cpu(*inputs, 0.0, True)
            _batch_of(run, mixed).copy_(part)
            _batch_of(run, lse).copy_(part_lse[..., None])
        ctx.save_for_backward(q, k, v, mixed, lse)
        ctx.runs = runs
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *kept, lse = ctx.saved_tensors
        inputs = _readable(grad), *kept
        gradients = [x.new_empty(x.shape) for x in kept[:3]]
        for run in ctx.runs:
            parts = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *(_batch_of(run, x) for x in inputs), _batch_of(run, lse)[..., 0], 0.0, True
            )
            for gradient, part in zip(gradients, parts, strict=True):
                _batch_of(run, gradient).copy_(part)
        return *gradients, None


def _batch_of(run: Run, x_SBnD: Tensor) -> Tensor:
    """A run's places as a batch, [count, n, length, D], in the same memory."""
    x_BnSD = x_SBnD.permute(1, 2, 0, 3)
    if run.length == x_BnSD.shape[2]:
        return x_BnSD[run.row : run.row + run.count]
    places = x_BnSD[run.row, :, run.start : run.start + run.count * run.length]
    return places.unflatten(1, (run.count, run.length)).transpose(0, 1)


def _readable(x: Tensor) -> Tensor:
    """The kernel reads D numbers that lie next to each other."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _packed(q: Tensor, k: Tensor, v: Tensor, stretches: Stretches) -> Tensor:
    """All stretches in one call on a GPU, which knows groups.

    The operation below torch.nn.attention.varlen, whose arguments change from release to release.
    """
    S, B = q.shape[:2]
    q, k, v = (_row_after_row(x) for x in (q, k, v))
    bounds, longest = stretches.cu_seqlens, max(stretches.lengths)
    mixed_TND, *_ = _aten._flash_attention_forward(
        q, k, v, bounds, bounds, longest, longest, 0.0, True, False
    )
    return mixed_TND.unflatten(0, (B, S)).transpose(0, 1).flatten(2)


def one_by_one(q: Tensor, k: Tensor, v: Tensor, stretches: Stretches) -> Tensor:
    """One plain call per stretch, for what no packed kernel takes: float32 on a GPU."""
    S, B = q.shape[:2]
    k, v = (_for_each_head(x, q) for x in (k, v))
    # split's gradient puts all pieces together once.
    pieces = zip(*(_row_after_row(x).split(stretches.lengths) for x in (q, k, v)), strict=True)
    mixed_TND = torch.cat([_alone(*piece) for piece in pieces])
    return mixed_TND.unflatten(0, (B, S)).transpose(0, 1).flatten(2)


def _alone(*qkv_LND: Tensor) -> Tensor:
    inputs = (x.transpose(0, 1)[None] for x in qkv_LND)
    return F.scaled_dot_product_attention(*inputs, is_causal=True)[0].transpose(0, 1)


def _row_after_row(x_SBnD: Tensor) -> Tensor:
    """[T, n, D]."""
    return x_SBnD.transpose(0, 1).flatten(0, 1)
