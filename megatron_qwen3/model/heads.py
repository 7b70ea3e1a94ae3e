"""Splits the fused projection into heads, with QK-Norm and rotary embedding, in one pass.

    q_SBND, k_SBGD, v_SBGD = query_key_value(qkv, q_weight, k_weight, cos, sin, eps)

Splitting, two norms, two rotations and the copies between them would be thirty passes over small
tensors, each followed by a synchronization of all threads, and one more copy to join the gradients.
Here they are one autograd node that reads the projection in place, writes queries and keys in the
memory order of attention, and puts the gradient in its place.

Legend: S sequence, B batch, G key/value groups, r query heads of a group, N = G·r, D head size.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from megatron_qwen3.cpu import kernels
from megatron_qwen3.model import ops

QKV = tuple[Tensor, Tensor, Tensor]


def query_key_value(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    rotates_queries: bool = True,
) -> QKV:
    """q [S, B, N, D], k and v [S, B, G, D] from qkv [S, B, G, r + 2, D].

    A group of qkv is its r query heads, its key, its value. Queries and keys are normed over D
    (Qwen3 technical report, arXiv 2505.09388, section 2: QK-Norm) with q_weight and k_weight [D],
    rounded to qkv's dtype, and rotated by cos and sin [S, 1 or B, 1, D] as `ops.rope` does; queries
    unless attention rotates them.
    """
    if kernels.has_fused_norm(qkv):
        q, k, v = qkv.split([qkv.shape[3] - 2, 1, 1], dim=3)
        q, k = ops.rms_norm(q, q_weight, eps).flatten(2, 3), ops.rms_norm(k, k_weight, eps)
        k = ops.rotated(k.squeeze(3), cos, sin)
        return ops.rotated(q, cos, sin) if rotates_queries else q, k, v.squeeze(3)
    weight = torch.stack([q_weight] * (qkv.shape[3] - 2) + [k_weight])
    cos, sin = cos[:, :, None], sin[:, :, None]
    if torch.is_grad_enabled():
        return _Heads.apply(qkv, weight, cos, sin, eps, rotates_queries)
    return _heads(qkv, weight, cos, sin, eps, rotates_queries)[0]


def _heads(
    qkv: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, rotates_queries: bool
) -> tuple[QKV, Tensor]:
    """The heads, and the factor by which each query and key was normed."""
    S, B, G, r2, D = qkv.shape
    normed, scale = ops.normalized(qkv[..., :-1, :], weight, eps)
    query, key = normed.split([r2 - 2, 1], dim=3)
    q, k = _head_first(query), _head_first(key)
    ops.rotate(key, cos, sin, 1, out=k)
    if rotates_queries:
        ops.rotate(query, cos, sin, 1, out=q)
    else:
        q.copy_(query)
    return (q.flatten(2, 3), k.flatten(2, 3), qkv[..., -1, :]), scale


def _head_first(x: Tensor) -> Tensor:
    """An empty tensor [S, B, G, n, D] with memory order [B, G, n, S, D]."""
    S, B, G, n, D = x.shape
    return x.new_empty(B, G, n, S, D).permute(3, 0, 1, 2, 4)


class _Heads(Function):
    """Saves the projection and one number per head; `weight` is [r + 1, D]."""

    @staticmethod
    def forward(ctx, qkv, weight, cos, sin, eps, rotates_queries):
        (q, k, v), scale = _heads(qkv, weight, cos, sin, eps, rotates_queries)
        ctx.save_for_backward(qkv, weight, scale, cos, sin)
        ctx.rotates_queries = rotates_queries
        return (
            q,
            k,
            v.permute(1, 2, 0, 3).clone(memory_format=torch.contiguous_format).permute(2, 0, 1, 3),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_q, grad_k, grad_v):
        qkv, weight, scale, cos, sin = ctx.saved_tensors
        S, B, G, r2, D = qkv.shape
        heads = qkv[..., :-1, :]
        grad_normed = heads.new_empty(heads.shape)
        query, key = grad_normed.split([r2 - 2, 1], dim=3)
        grad_q = grad_q.unflatten(2, (G, r2 - 2))
        if ctx.rotates_queries:
            ops.rotate(grad_q, cos, sin, -1, out=query)
        else:
            query.copy_(grad_q)
        ops.rotate(grad_k.unsqueeze(3), cos, sin, -1, out=key)
        grad = qkv.new_empty(qkv.shape)
        grad[..., -1, :] = grad_v
        grad_weight = ops.norm_gradient(heads, weight, scale, grad_normed, grad[..., :-1, :])
        return grad, grad_weight, None, None, None, None
