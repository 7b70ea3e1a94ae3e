"""Kernels by which Transformer Engine lays documents over context ranks: see `stand_in.py`.

Of n ranks, rank r has pieces r and 2n-1-r of each document's 2n, as its documentation of
`thd_sequence_order_to_cp_rank_order` shows.
"""

from itertools import pairwise

import torch
from torch import Tensor


def thd_get_partitioned_indices(cu_seqlens, total_tokens, ranks, rank):
    return torch.tensor(_places(cu_seqlens, ranks, rank), dtype=torch.int32)


def thd_sequence_order_to_cp_rank_order(x, cu_seqlens, ranks, total_tokens):
    return x[_of_all_ranks(cu_seqlens, ranks)]


def thd_cp_rank_order_to_sequence_order(x, cu_seqlens, ranks, total_tokens):
    whole = torch.empty_like(x)
    whole[_of_all_ranks(cu_seqlens, ranks)] = x
    return whole


def thd_copy_valid_tokens_from_per_split_to_rank_local(whole, part, cu_seqlens_padded, cu_seqlens):
    lengths = cu_seqlens.diff().tolist()
    for start, length in zip(cu_seqlens_padded.tolist()[:-1], lengths, strict=True):
        whole[start : start + length] = part[start : start + length]


def _of_all_ranks(cu_seqlens: Tensor, ranks: int) -> Tensor:
    places = (_places(cu_seqlens, ranks, rank) for rank in range(ranks))
    return torch.tensor(sum(places, []))


def _places(cu_seqlens: Tensor, ranks: int, rank: int) -> list[int]:
    places: list[int] = []
    for first, last in pairwise(cu_seqlens.tolist()):
        size, rest = divmod(last - first, 2 * ranks)
        assert not rest, "a document that 2n does not divide"
        for piece in (rank, 2 * ranks - 1 - rank):
            places += range(first + piece * size, first + (piece + 1) * size)
    return places
