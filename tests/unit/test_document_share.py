"""Transformer Engine's cut of packed documents: the places of each context rank."""

from itertools import pairwise
from types import SimpleNamespace

import golden
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_qwen3.model.document_share import DocumentShare
from megatron_qwen3.model.stretches import Stretches


def rank_of(rank, ranks):
    return SimpleNamespace(rank=lambda: rank, size=lambda: ranks)


def shares(rows, ranks, unit):
    """Of each rank; `rows`: the lengths of each row's documents."""
    length = sum(rows[0])
    starts = [torch.tensor([0, *row[:-1]]).cumsum(0).tolist() for row in rows]
    stretches = Stretches.of(starts, length)
    return [DocumentShare.of_rows(rank_of(r, ranks), stretches, unit) for r in range(ranks)]


def test_ranks_have_the_places_of_the_reference():
    reference = golden.read("cp.json")
    if reference is None:
        pytest.skip(f"cp.json is not in {golden.folder()}")
    cases = [case for case in reference["cases"] if case["mode"] == "documents"]
    assert cases
    for case in cases:
        found = shares([case["documents"]], case["cp"], 2 * case["cp"])
        place_BS, position_BS = torch.arange(96)[None], found[0].texts.positions_BS()
        for share, places, positions in zip(found, case["rows"], case["positions"], strict=True):
            assert share.of(place_BS)[0].tolist() == places
            assert share.of(position_BS)[0].tolist() == positions
            assert share.valid(None).all()


@given(data=st.data(), ranks=st.integers(1, 5), times=st.integers(1, 3), rows=st.integers(1, 3))
def test_every_token_of_any_documents_is_of_one_rank_and_comes_back_to_its_place(
    data, ranks, times, rows
):
    length, unit = data.draw(st.integers(1, 40)), 2 * ranks * times
    cuts = [data.draw(st.sets(st.integers(1, length))) | {0, length} for _ in range(rows)]
    lengths = [[b - a for a, b in pairwise(sorted(row))] for row in cuts]
    found = shares(lengths, ranks, unit)
    line = found[0].padded
    assert line.length % unit == 0 and line.bounds == (*line.cu_seqlens.tolist(),)
    assert line.cu_seqlens.dtype == torch.int32
    documents = sum(lengths, [])
    for text, padded in zip(documents[:-1], line.lengths[:-1], strict=True):
        assert text <= padded < text + 2 * ranks and padded % (2 * ranks) == 0
    assert documents[-1] <= line.lengths[-1] < documents[-1] + 2 * ranks + unit
    place_BS = torch.arange(rows * length).view(rows, length)
    every = torch.cat([share.of(place_BS)[0] for share in found])
    is_token = torch.cat([share.valid(None)[0] for share in found])
    assert sorted(every[is_token].tolist()) == place_BS.flatten().tolist()
    assert torch.equal(every[found[0]._gathered_places], place_BS.flatten())


def test_padding_of_rows_is_none_of_the_tokens_either():
    first, second = shares([[3, 5], [8]], 2, 4)
    valid_BS = torch.ones(2, 8, dtype=torch.bool)
    valid_BS[1, 6:] = False
    assert sum(int(share.valid(valid_BS).sum()) for share in (first, second)) == 14
