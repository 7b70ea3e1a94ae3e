"""Context parallelism by our own attention: each rank computes two pieces of every row.

    share = ContextShare(group)
    x_BL = share.of(x_BS)                    # this rank's places, from embedding to last layer
    mixed_LBW = share.attention(q_LBND, k_LBGD, v_LBGD, reads)
    log_prob_BS = share.whole(log_prob_BL, S)   # of all places, equal on all ranks

A row is cut into 2n pieces for n ranks, and rank r has pieces r and 2n-1-r: causal attention then
costs all ranks the same (Llama 3, arXiv 2407.21783, section 3.3.2). Each rank gathers the keys and
values of all places for attention, and again in backward, where their gradients are added up over
the ranks: documents of any length need no padding, and no rank keeps a row. Every rank has the
whole batch and computes the whole loss from all ranks' head outputs, so objectives need not know of
context parallelism; a rank's gradients are those of its own places, and add up over the ranks.

Legend: B rows, S places of a row, L places of this rank, G key/value groups, D head size.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from megatron_qwen3.model import flash
from megatron_qwen3.model.attention import Tables, read, read_gradients
from megatron_qwen3.model.reads import Interval, Reads


def pieces_of(rank: int, ranks: int, length: int) -> tuple[Interval, Interval]:
    """The two intervals of a row's places that a rank has, for any length, as even as possible."""
    bounds = [length * n // (2 * ranks) for n in range(2 * ranks + 1)]
    first, second = rank, 2 * ranks - 1 - rank
    return (bounds[first], bounds[first + 1]), (bounds[second], bounds[second + 1])


@dataclass(frozen=True, eq=False)
class ContextShare:
    """The part of each row that this rank of `group` has.

    attends: whether attention is ours; else it is Transformer Engine's, which cuts rows alike where
    2n divides their length.
    """

    group: Any
    attends: bool = True

    def pieces(self, length: int) -> tuple[Interval, Interval]:
        """This rank's intervals of places, in the order in which it holds them."""
        return pieces_of(self.group.rank(), self.group.size(), length)

    def of(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's places of a tensor that has all places along `dim`."""
        parts = (x.narrow(dim, a, b - a) for a, b in self.pieces(x.shape[dim]))
        return torch.cat(tuple(parts), dim)

    def valid(self, valid_BS: Tensor | None) -> Tensor | None:
        """Whether each of this rank's places is text, not padding; None without padding."""
        return None if valid_BS is None else self.of(valid_BS)

    def whole(self, x_BL: Tensor, length: int) -> Tensor:
        """[B, S, …] of all ranks' [B, L, …]; each rank's gradient is that of its own places."""
        whole: Tensor = _Whole.apply(x_BL.transpose(0, 1), self, length)
        return whole.transpose(0, 1)

    def attention(
        self, q_LBND: Tensor, k_LBGD: Tensor, v_LBGD: Tensor, reads: Reads, tables: Tables | None
    ) -> Tensor:
        """Attention of this rank's queries to all ranks' keys, [L, B, W]: model/attention.py."""
        mixed: Tensor = _Attention.apply(q_LBND, k_LBGD, v_LBGD, reads, tables, self.group)
        return mixed.flatten(2)


class _Whole(Function):
    @staticmethod
    def forward(ctx: Any, x_L: Tensor, share: ContextShare, length: int) -> Tensor:
        ctx.share = share
        return _gathered(x_L, share.group, length)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_S: Tensor) -> tuple[Tensor, None, None]:
        return ctx.share.of(grad_S, 0), None, None


class _Attention(Function):
    """Saves this rank's q, k, v, the result and one number per query for backward."""

    @staticmethod
    def forward(ctx, q, k, v, reads, tables, group):
        q = flash.readable(q)
        mixed, lse = read(q, *_keys_of_all(k, v, group, reads.keys), reads, tables)
        ctx.save_for_backward(q, k, v, mixed, lse)
        ctx.reads, ctx.tables, ctx.group = reads, tables, group
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, mixed, lse = ctx.saved_tensors
        keys = _keys_of_all(k, v, ctx.group, ctx.reads.keys)
        grad = flash.readable(grad)
        dq, dk, dv = read_gradients(grad, q, *keys, mixed, lse, ctx.reads, ctx.tables)
        dk, dv = _added_up(dk, dv, ctx.group)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _keys_of_all(k: Tensor, v: Tensor, group: Any, length: int) -> tuple[Tensor, Tensor]:
    """Gather keys and values of all places, [S, B, G, D] each, in one exchange."""
    keys, values = _gathered(torch.cat((k, v), -1), group, length).chunk(2, -1)
    return keys, values


def _gathered(x_L: Tensor, group: Any, length: int) -> Tensor:
    """Gather all ranks' places, in order, [S, …]."""
    ranks, most = group.size(), _most_places(group.size(), length)
    mine = _padded(x_L.contiguous(), most)
    every = mine.new_empty((ranks * most, *mine.shape[1:]))
    dist.all_gather_into_tensor(every, mine, group=group)
    every = every.unflatten(0, (ranks, most))
    first, second = [], []
    for rank in range(ranks):
        (a, b), (c, d) = pieces_of(rank, ranks, length)
        first.append(every[rank, : b - a])
        second.append(every[rank, b - a : b - a + d - c])
    return torch.cat(first + second[::-1])


def _added_up(dk_S: Tensor, dv_S: Tensor, group: Any) -> tuple[Tensor, ...]:
    """The sums over all ranks at this rank's places, [L, …] each, of float32 at least."""
    ranks, length = group.size(), len(dk_S)
    most = _most_places(ranks, length)
    wide = torch.promote_types(dk_S.dtype, torch.float32)  # sums in bf16 would round
    every = dk_S.new_zeros((ranks, most, 2, *dk_S.shape[1:]), dtype=wide)
    for rank in range(ranks):
        (a, b), (c, d) = pieces_of(rank, ranks, length)
        for x_S, to_L in zip((dk_S, dv_S), every[rank].unbind(1), strict=True):
            to_L[: b - a] = x_S[a:b]
            to_L[b - a : b - a + d - c] = x_S[c:d]
    mine = every.new_empty(every.shape[1:])
    dist.reduce_scatter_tensor(mine, every.flatten(0, 1), group=group)
    (a, b), (c, d) = pieces_of(group.rank(), ranks, length)
    return mine[: b - a + d - c].unbind(1)


def _most_places(ranks: int, length: int) -> int:
    """The most places of any rank: collectives need equally many from each."""
    pieces = (pieces_of(rank, ranks, length) for rank in range(ranks))
    return max(b - a + d - c for (a, b), (c, d) in pieces)


def _padded(x_L: Tensor, length: int) -> Tensor:
    missing = length - len(x_L)
    return torch.cat((x_L, x_L.new_zeros(missing, *x_L.shape[1:]))) if missing else x_L
