"""The places of a row that each context-parallel rank has."""

import golden
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_qwen3.model.context import pieces_of


def places_of(rank, ranks, length):
    return [place for first, last in pieces_of(rank, ranks, length) for place in range(first, last)]


def test_ranks_have_the_places_of_the_reference():
    reference = golden.read("cp.json")
    if reference is None:
        pytest.skip(f"cp.json is not in {golden.folder()}")
    cases = [case for case in reference["cases"] if case["mode"] == "sequence"]
    assert cases
    for case in cases:
        length = sum(case["documents"])
        for rank, expected in enumerate(case["rows"]):
            assert places_of(rank, case["cp"], length) == expected


@given(ranks=st.integers(1, 9), length=st.integers(0, 200))
def test_every_place_of_any_length_is_of_one_rank_and_ranks_have_nearly_equally_many(ranks, length):
    of_ranks = [places_of(rank, ranks, length) for rank in range(ranks)]
    assert sorted(sum(of_ranks, [])) == list(range(length))
    sizes = [len(places) for places in of_ranks]
    assert max(sizes) - min(sizes) <= 2


@given(ranks=st.integers(1, 9), unit=st.integers(1, 20))
def test_causal_attention_costs_all_ranks_the_same(ranks, unit):
    pairs = {
        sum(1 + place for place in places_of(r, ranks, 2 * ranks * unit)) for r in range(ranks)
    }
    assert len(pairs) == 1
