"""Beginnings of texts in rows: bounds, positions, runs and parts of them, by their definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.training.batch import TokenBatch

LENGTH = 8
starts_of_a_row = st.sets(st.integers(1, LENGTH - 1)).map(lambda s: [0, *sorted(s)])
starts_of_rows = st.lists(starts_of_a_row, min_size=1, max_size=5)


@given(starts_of_rows)
def test_bounds_are_the_starts_counted_through_all_rows_and_the_end(starts):
    stretches = Stretches.of(starts, LENGTH)
    expected = [LENGTH * row + s for row, of_row in enumerate(starts) for s in of_row]
    assert stretches.bounds == (*expected, LENGTH * len(starts))
    assert stretches.cu_seqlens.tolist() == [*stretches.bounds]
    assert stretches.cu_seqlens.dtype == torch.int32
    assert (stretches.rows, sum(stretches.lengths)) == (len(starts), LENGTH * len(starts))


@given(starts_of_rows)
def test_positions_count_from_the_start_of_each_stretch(starts):
    expected = [[p - max(s for s in of_row if s <= p) for p in range(LENGTH)] for of_row in starts]
    positions_BS = Stretches.of(starts, LENGTH).positions_BS()
    assert positions_BS.dtype == torch.int64 and positions_BS.tolist() == expected


@given(starts_of_rows)
def test_starts_of_rows_are_what_they_were_made_of(starts):
    assert [[*row] for row in Stretches.of(starts, LENGTH).starts_of_rows()] == starts


@given(starts_of_rows, st.data())
def test_some_of_the_rows_are_the_stretches_of_these_rows(starts, data):
    first = data.draw(st.integers(0, len(starts) - 1))
    last = data.draw(st.integers(first + 1, len(starts) + 2))
    part, expected = Stretches.of(starts, LENGTH).of_rows(first, last), starts[first:last]
    assert part.bounds == Stretches.of(expected, LENGTH).bounds
    assert part.cu_seqlens.tolist() == [*part.bounds]


@given(starts_of_rows, st.integers(0, 3))
def test_padding_repeats_the_first_row(starts, more):
    padded = Stretches.of(starts, LENGTH).padded_to(len(starts) + more)
    assert padded.bounds == Stretches.of([*starts, *[starts[0]] * more], LENGTH).bounds
    assert padded.cu_seqlens.tolist() == [*padded.bounds]


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([[0], []], "row 1: its first stretch begins at no start; valid: 0"),
        ([[2, 5]], "row 0: its first stretch begins at 2; valid: 0"),
        ([[0, 5, 5]], "row 0: a stretch begins at 5 after one at 5"),
        ([[0], [0, 6, 3]], "row 1: a stretch begins at 3 after one at 6"),
        ([[0, 8]], "row 0: a stretch begins at 8 of 8 places"),
    ],
)
def test_starts_that_are_none_are_refused_by_row(starts, message):
    with pytest.raises(ValueError, match=message):
        Stretches.of(starts, LENGTH)


def _batch():
    ids = torch.arange(24).view(3, 8)
    return TokenBatch.of(ids, ids + 1, Stretches.of([[0, 3], [0], [0, 1, 7]], 8))


def test_a_batch_keeps_rows_and_their_stretches_together():
    first, second = _batch().split(2)
    assert first.stretches.bounds == (0, 3, 8, 16) and second.stretches.bounds == (0, 1, 7, 8)
    padded = _batch().padded_to(4)
    assert padded.stretches.bounds == (0, 3, 8, 16, 17, 23, 24, 27, 32)
    assert padded.to(torch.device("meta")).stretches.cu_seqlens.is_meta


def test_a_batch_of_unequal_rows_is_refused_by_the_field():
    ids, ones = torch.zeros(2, 8, dtype=torch.int64), torch.ones(2, 8)
    with pytest.raises(ValueError, match=r"labels_BS has shape \[2, 7\], and tokens_BS \[2, 8\]"):
        TokenBatch(ids, ids[:, 1:], ones)
    with pytest.raises(ValueError, match=r"weights_BS has shape \[1, 8\], and tokens_BS \[2, 8\]"):
        TokenBatch(ids, ids, ones[:1])
    with pytest.raises(ValueError, match=r"stretches are of \[1, 8\], tokens_BS of \[2, 8\]"):
        TokenBatch(ids, ids, ones, Stretches.of([[0]], 8))
