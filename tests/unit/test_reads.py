"""Reads of attention: rectangles and calls of kernels against the definition, place by place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_qwen3.model.reads import Reads, joined, rectangles
from megatron_qwen3.model.stretches import Stretches
from tests import golden

LENGTH = 12
NOTHING = -1


def definition(bounds, chunk):
    """The distance at which each place of a row reads each other one, [LENGTH, LENGTH]."""
    seen = torch.full((LENGTH, LENGTH), NOTHING)
    for begin, end in zip(bounds, bounds[1:], strict=False):
        for i in range(begin, end):
            for j in range(begin, i + 1):
                chunks = (i - begin) // chunk - (j - begin) // chunk if chunk else 0
                seen[i, j] = min(chunks, 2)
    return seen


def painted(seen, queries, keys, is_causal, distance):
    """`seen` with the places of one rectangle; none of them may have been read before."""
    own = seen[queries[0] : queries[1], keys[0] : keys[1]]
    assert own.numel()
    reads = torch.ones_like(own, dtype=torch.bool)
    if is_causal:
        assert own.shape[0] == own.shape[1]
        reads = reads.tril()
    assert (own[reads] == NOTHING).all()
    own[reads] = distance


starts_of_a_row = st.sets(st.integers(1, LENGTH - 1)).map(lambda s: [0, *sorted(s)])
chunks = st.sampled_from([None, 1, 2, 3, 5, LENGTH, LENGTH + 1])


@st.composite
def some_pieces(draw):
    """Parts of a row in any order."""
    cuts = [*draw(starts_of_a_row), LENGTH]
    pieces = draw(st.permutations([*zip(cuts, cuts[1:], strict=False)]))
    return pieces[: draw(st.integers(1, len(pieces)))]


def places_of(pieces):
    return [place for first, last in pieces for place in range(first, last)]


@given(starts_of_a_row, some_pieces(), chunks)
def test_rectangles_of_a_row_read_each_pair_once_at_its_distance(starts, pieces, chunk):
    bounds, places = [*starts, LENGTH], places_of(pieces)
    seen = torch.full((len(places), LENGTH), NOTHING)
    for queries, keys, is_causal, distance, place in rectangles(bounds, joined(pieces), chunk):
        painted(seen, queries, keys, is_causal, distance)
        begin = max(start for start in starts if start <= places[queries[0]])
        assert place == ((places[queries[0]] - begin) % chunk if chunk else 0)
    assert torch.equal(seen, definition(bounds, chunk)[places])


@given(st.lists(starts_of_a_row, min_size=1, max_size=4), some_pieces(), chunks)
@settings(deadline=None)
def test_calls_read_what_the_rectangles_of_all_rows_do(starts, pieces, chunk):
    rows, places = len(starts), places_of(pieces)
    reads = Reads.of(rows, LENGTH, Stretches.of(starts, LENGTH), pieces, chunk)
    seen = torch.full((rows, len(places), LENGTH), NOTHING)
    query_SB = torch.arange(len(places) * rows).view(len(places), rows, 1, 1)
    key_TB = torch.arange(LENGTH * rows).view(LENGTH, rows, 1, 1)
    for call in reads.calls:
        of_queries, of_keys = call.of_queries(query_SB), call.of_keys(key_TB)
        assert of_queries.shape == (call.rows * call.steps, 1, call.queries, 1)
        assert of_keys.shape == (call.rows * call.steps, 1, call.keys, 1)
        for q, k in zip(of_queries.flatten(1), of_keys.flatten(1), strict=True):
            (row,) = {*(q % rows).tolist(), *(k % rows).tolist()}
            intervals = [(int(x[0]) // rows, int(x[-1]) // rows + 1) for x in (q, k)]
            painted(seen[row], *intervals, call.is_causal, call.distance)
    expected = [definition([*of_row, LENGTH], chunk)[places] for of_row in starts]
    assert torch.equal(seen, torch.stack(expected))
    assert (reads.queries, reads.keys) == (len(places), LENGTH)


@given(st.lists(starts_of_a_row, min_size=1, max_size=4), some_pieces(), chunks)
def test_squares_of_a_place_come_before_what_adds_to_them(starts, pieces, chunk):
    reads = Reads.of(len(starts), LENGTH, Stretches.of(starts, LENGTH), pieces, chunk)
    query_SB = torch.arange(reads.queries * len(starts)).view(-1, len(starts), 1, 1)
    squared = set()
    for call in reads.calls:
        places = {*call.of_queries(query_SB).flatten().tolist()}
        if call.is_causal:
            assert not places & squared
            squared |= places
        assert places <= squared
    assert len(squared) == query_SB.numel()


def test_documents_of_one_length_are_one_call_and_so_are_whole_rows():
    equal = Reads.of(1, LENGTH, Stretches.of([[0, 3, 6, 9]], LENGTH))
    assert [(call.steps, call.rows) for call in equal.calls] == [(4, 1)]
    assert [(call.steps, call.rows) for call in Reads.of(5, LENGTH).calls] == [(1, 5)]


def test_chunks_of_a_row_are_one_call_by_distance_but_for_the_far_ones():
    calls = Reads.of(1, LENGTH, chunk=3).calls
    found = [(call.distance, call.steps, call.keys) for call in calls]
    assert found == [(0, 4, 3), (1, 3, 3), (2, 1, 3), (2, 1, 6)]


RANKS = [
    pytest.param(case, rank, id=f"{case['documents']}-{case['mode']}-cp{case['cp']}.{rank}")
    for case in (golden.read("cp.json") or {"cases": []})["cases"]
    for rank in range(case["cp"])
]


@pytest.mark.skipif(not RANKS, reason=f"cp.json is not in {golden.folder()}")
@pytest.mark.parametrize(("case", "rank"), RANKS)
def test_rectangles_of_a_context_parallel_rank_are_those_of_the_reference(case, rank):
    places = case["rows"][rank]
    pieces = joined([(place, place + 1) for place in places])
    ends = torch.tensor([0, *case["documents"]]).cumsum(0).tolist()
    size, local = case["dca_chunk_local"] or (None, None)
    found = rectangles(ends, pieces, size and size - local)
    ours = [[x.distance, [*x.queries], [*x.keys], x.is_causal] for x in found]
    assert ours == case["rectangles"][rank]
