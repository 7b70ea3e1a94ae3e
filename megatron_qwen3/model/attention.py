"""Attention as one primitive: rectangles of queries and keys, merged by their denominators.

    mixed_SBW = attention(q_SBND, k_SBGD, v_SBGD)                  # each row is one text
    mixed_SBW = attention(q_SBND, k_TBGD, v_TBGD, reads)           # which keys: reads.py
    mixed_SBW = attention(q_SBND, k_TBGD, v_TBGD, reads, tables)   # Dual Chunk Attention: dca.py

Documents that share rows, chunks, and a rank with a part of a row's queries are different lists
of rectangles. A rectangle p of a query's keys gives a softmax of its own, out_p, and the logarithm
of its denominator, lse_p; that over all of them is

    lse = log Σ_p exp(lse_p)        out = Σ_p exp(lse_p - lse) · out_p

Backward asks the kernel for every rectangle's gradients again, but with the merged out and lse:
its weights exp(score - lse) and Σ grad · out are then those of the whole softmax, and the gradients
add up. Autograd could not do this, since kernels give no gradient by lse. No tensor or mask of size
S×T is made, and time grows with the pairs of places that attend to each other.

Shapes: S queries and T keys of a row, B batch, N query heads, G key/value groups, D head size,
W = N·D; b, n and small lengths of one kernel's call.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from megatron_qwen3.cpu import kernels
from megatron_qwen3.model import flash, ops
from megatron_qwen3.model.dca import Tables
from megatron_qwen3.model.reads import KernelCall, Reads
from megatron_qwen3.model.stretches import Stretches

_aten = torch.ops.aten


def attention(
    q_SBND: Tensor,
    k_TBGD: Tensor,
    v_TBGD: Tensor,
    reads: Reads | None = None,
    tables: Tables | None = None,
) -> Tensor:
    """softmax(q kᵀ / √D) v over the keys that each query reads, [S, B, W].

    Query head n reads group n // (N/G). Without `reads` a row is one text, S = T, and each place
    attends to itself and to earlier places. With `tables`, made for the places of a chunk, queries
    are rotated here, by the table of the distance, whenever they are read, so that three rotated
    copies need not be kept. ValueError where `reads` are of other rows, or `tables` come alone.
    """
    if reads is None and tables is None:
        return _whole_rows(q_SBND, k_TBGD, v_TBGD)
    if reads is None:
        raise ValueError("`tables` are of the places of chunks, which need `reads`")
    _check(q_SBND, k_TBGD, reads)
    if reads.stretches and kernels.has_packed_attention(q_SBND):
        return _packed(q_SBND, k_TBGD, v_TBGD, reads.stretches)
    return _Attention.apply(q_SBND, k_TBGD, v_TBGD, reads, tables).flatten(2)


def read(
    q: Tensor, k: Tensor, v: Tensor, reads: Reads, tables: Tables | None = None
) -> tuple[Tensor, Tensor]:
    """The result of attention, [S, B, N, D], and lse [S, B, N, 1], for use in another function.

    Softmaxes are merged in float32 at least, and rounded to q's dtype once.
    """
    S, B, N, _ = q.shape
    wide = _wide(q)
    mixed = q.new_empty(q.shape, dtype=wide if reads.merges else q.dtype)
    lse = q.new_empty(B, N, S, 1, dtype=wide).permute(2, 0, 1, 3)
    for call in reads.calls:
        query = _turned(call, call.of_queries(q), tables)
        part, part_lse = flash.forward(query, call.of_keys(k), call.of_keys(v), call.is_causal)
        put = _put if call.is_causal else _merge
        put(call.of_queries(mixed), call.of_queries(lse), part, part_lse[..., None])
    return mixed.to(q.dtype), lse


def read_gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mixed: Tensor,
    lse: Tensor,
    reads: Reads,
    tables: Tables | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by q, k and v, from those by `read`'s results mixed and lse.

    Where parts add up, they are float32 at least: a caller with a part of each row's queries adds
    the gradients of keys and values over ranks before they are rounded.
    """
    dtype = _wide(q) if reads.merges else q.dtype
    dq = q.new_empty(q.shape, dtype=dtype)
    # A key's first gradient is that of its own place's square; keys without one start from 0.
    empty = torch.empty_like if reads.queries == reads.keys else torch.zeros_like
    dk, dv = (empty(x, dtype=dtype) for x in (k, v))
    for call in reads.calls:
        query = _turned(call, call.of_queries(q), tables)
        key, value = call.of_keys(k), call.of_keys(v)
        merged = call.of_queries(mixed), call.of_queries(lse)[..., 0]
        parts = flash.backward(call.of_queries(grad), query, key, value, *merged, call.is_causal)
        part = _turned_back(call, parts[0], tables)
        put = torch.Tensor.copy_ if call.is_causal else torch.Tensor.add_
        put(call.of_queries(dq), part)
        put(call.of_keys(dk), parts[1])
        put(call.of_keys(dv), parts[2])
    return dq, dk, dv


class _Attention(Function):
    """Saves q, k, v, the result and one number per query for backward."""

    @staticmethod
    def forward(ctx, q, k, v, reads, tables):
        q, k, v = (flash.readable(x) for x in (q, k, v))
        mixed, lse = read(q, k, v, reads, tables)
        ctx.save_for_backward(q, k, v, mixed, lse)
        ctx.reads, ctx.tables = reads, tables
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        saved = ctx.saved_tensors
        gradients = read_gradients(flash.readable(grad), *saved, ctx.reads, ctx.tables)
        return *(x.to(saved[0].dtype) for x in gradients), None, None


def _put(mixed: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    mixed.copy_(part)
    lse.copy_(part_lse)


def _merge(mixed: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Merge mixed and lse of two softmaxes into those of the first."""
    mixed.lerp_(part.to(mixed.dtype), torch.sigmoid(part_lse - lse))
    lse.copy_(torch.logaddexp(lse, part_lse))


def _turned(call: KernelCall, q: Tensor, tables: Tables | None) -> Tensor:
    if tables is None:
        return q
    return ops.rotate(q, *_rotation(call, tables), 1, out=q.new_empty(q.shape))


def _turned_back(call: KernelCall, dq: Tensor, tables: Tables | None) -> Tensor:
    """The gradient by the query before rotation, without another rounding."""
    if tables is None:
        return dq
    return ops.rotate(dq, *_rotation(call, tables), -1, out=dq.new_empty(dq.shape, dtype=_wide(dq)))


def _rotation(call: KernelCall, tables: Tables) -> Tensor:
    """cos and sin of a call's queries, [2, queries, D]."""
    return tables[call.distance][:, call.place : call.place + call.queries, 0, 0]


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _whole_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if not kernels.attention_knows_groups(q):
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    q, k, v = (x.permute(1, 2, 0, 3).contiguous() for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    return mixed.permute(2, 0, 1, 3).flatten(2)


def _packed(q: Tensor, k: Tensor, v: Tensor, stretches: Stretches) -> Tensor:
    """All stretches in one call of a GPU kernel that knows groups.

    Calls the operation below torch.nn.attention.varlen, whose arguments change between releases.
    """
    S, B = q.shape[:2]
    q, k, v = (x.transpose(0, 1).flatten(0, 1) for x in (q, k, v))
    bounds, longest = stretches.cu_seqlens, max(stretches.lengths)
    mixed_TND, *_ = _aten._flash_attention_forward(
        q, k, v, bounds, bounds, longest, longest, 0.0, True, False
    )
    return mixed_TND.unflatten(0, (B, S)).transpose(0, 1).flatten(2)


def _check(q: Tensor, k: Tensor, reads: Reads) -> None:
    found = q.shape[1], q.shape[0], k.shape[0]
    wanted = reads.rows, reads.queries, reads.keys
    if found != wanted:
        raise ValueError(
            "q and k are of {} rows of {} queries and {} keys, but `reads` of {} rows of {} "
            "queries and {} keys".format(*found, *wanted)
        )
