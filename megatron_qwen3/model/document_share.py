"""Context parallelism by Transformer Engine: each rank computes two pieces of every document.


    share = DocumentShare.of_rows(group, stretches, unit)   # of a micro-batch
    x_1L = share.of(x_BS)                       # this rank's places, those of padding among them
    log_prob_BS = share.whole(log_prob_1L, S)   # of all places of the rows, on all ranks

The rows become one line of documents, each padded to a multiple of 2n places for n ranks and cut
into 2n pieces, of which rank r has pieces r and 2n-1-r: its `thd_get_partitioned_indices`. The last
document takes further padding that the line needs. Padding follows its document and repeats its
last token: causal attention hides it from all tokens, so it needs no mask; no router counts it, and
its results are unused, so that it adds no gradient.

Legend: B rows, S places of a row, T = B·S, L places of this rank in the line.
"""

import functools
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from megatron_qwen3.model.stretches import Stretches


@dataclass(frozen=True, eq=False)
class DocumentShare:
    """The part of each document that this rank of `group` has.

    texts: the documents as in the rows; padded: the documents as in the line of all ranks.
    """

    group: Any
    texts: Stretches
    padded: Stretches

    @classmethod
    def of_rows(cls, group: Any, texts: Stretches, unit: int) -> Self:
        """unit: a factor of the line's length, a multiple of 2n."""
        pieces, bounds = 2 * group.size(), texts.cu_seqlens
        lengths = [-(-length // pieces) * pieces for length in texts.lengths]
        rest = -sum(lengths) % unit
        lengths[-1] += rest
        length_of = (bounds.diff() + pieces - 1) // pieces * pieces
        length_of[-1] += rest
        cu_seqlens = F.pad(length_of.cumsum(0, dtype=torch.int32), (1, 0))
        line = Stretches(sum(lengths), (0, *accumulate(lengths)), cu_seqlens)
        return cls(group, texts, line)

    def of(self, x_BS: Tensor) -> Tensor:
        """[1, L, …] from [B, S, …]; padding repeats the last token of its document."""
        place_L, _ = self._places
        return x_BS.flatten(0, 1)[place_L][None]

    def valid(self, valid_BS: Tensor | None) -> Tensor:
        """bool [1, L], False where a place is padding, of the rows or of the line."""
        _, is_token_L = self._places
        return is_token_L[None] if valid_BS is None else is_token_L & self.of(valid_BS)

    def whole(self, x_1L: Tensor, length: int) -> Tensor:
        """[B, S, …] of all ranks' [1, L, …]; each rank's gradient is that of its own places."""
        whole: Tensor = _Rows.apply(x_1L[0], self)
        return whole.unflatten(0, (-1, length))

    @functools.cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """For each place of this rank, its place in T, int64 [L], and whether it is a token rather
        than padding."""
        rank, ranks = self.group.rank(), self.group.size()
        bounds, length_of = self.padded.cu_seqlens, self.padded.cu_seqlens.diff()
        document_L = _numbers(length_of // ranks, self.padded.length // ranks)
        piece_L = (length_of // (2 * ranks))[document_L]
        place_L = torch.arange(len(document_L), device=bounds.device)
        place_L = place_L - (bounds // ranks)[document_L]
        pieces_before_L = torch.where(place_L < piece_L, rank, 2 * ranks - 2 - rank)
        place_L = place_L + pieces_before_L * piece_L
        tokens_L = self.texts.cu_seqlens.diff()[document_L]
        first_L = self.texts.cu_seqlens[document_L]
        return first_L + torch.minimum(place_L, tokens_L - 1), place_L < tokens_L

    @functools.cached_property
    def _gathered_places(self) -> Tensor:
        """For each place of the rows, its place in the concatenation of all ranks' places, int64
        [T]."""
        ranks, line = self.group.size(), self.padded
        document_T = _numbers(self.texts.cu_seqlens.diff(), self.texts.bounds[-1])
        place_T = torch.arange(len(document_T), device=document_T.device)
        place_T = place_T - self.texts.cu_seqlens[document_T]
        size_T = (line.cu_seqlens.diff() // (2 * ranks))[document_T]
        piece_T, rest_T = place_T // size_T, place_T % size_T
        rank_T = torch.minimum(piece_T, 2 * ranks - 1 - piece_T)
        first_T = (line.cu_seqlens // ranks)[document_T] + (piece_T >= ranks) * size_T
        return rank_T * (line.length // ranks) + first_T + rest_T


class _Rows(Function):
    @staticmethod
    def forward(ctx: Any, x_L: Tensor, share: DocumentShare) -> Tensor:
        ctx.share = share
        every = x_L.new_empty((share.group.size() * len(x_L), *x_L.shape[1:]))
        dist.all_gather_into_tensor(every, x_L.contiguous(), group=share.group)
        return every[share._gathered_places]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None]:
        place_L, is_token_L = ctx.share._places
        grad_L = grad_T[place_L]
        grad_L[~is_token_L] = 0
        return grad_L, None


def _numbers(lengths: Tensor, total: int) -> Tensor:
    """For each of `total` places, the number of its document."""
    number = torch.arange(len(lengths), device=lengths.device)
    return number.repeat_interleave(lengths, output_size=total)
