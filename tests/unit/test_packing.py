"""Packing: every sample once an epoch, rows that are full, and the same rows whoever asks when."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.best_fit import best_fit
from megatron_qwen3.posttrain.rows import packing
from megatron_qwen3.posttrain.rows.packing import DrawnSource, Packing, by_epochs, by_weights

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=120)


def naive(lengths, capacity):
    """Best fit decreasing by its definition: looks at every row for every sample."""
    rows, rooms = [], []
    for n in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        fitting = [row for row in range(len(rows)) if rooms[row] >= lengths[n]]
        row = min(fitting, key=lambda row: rooms[row], default=None)
        if row is None:
            rows.append([])
            rooms.append(capacity)
            row = len(rows) - 1
        rows[row].append(n)
        rooms[row] -= lengths[n]
    return rows, rooms


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS)
def test_rows_are_those_of_best_fit_decreasing(lengths):
    rows = best_fit(np.array(lengths), 64)
    assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
    rooms = [64 - sum(lengths[n] for n in row) for row in rows]
    assert min(rooms) >= 0
    # Rows of equal room are alike: which of them takes a sample changes no room.
    assert sorted(rooms) == sorted(naive(lengths, 64)[1])


@pytest.mark.parametrize("lengths", [[0, 3], [65], [1, 70]])
def test_lengths_that_fit_no_row_are_refused(lengths):
    with pytest.raises(ValueError, match="valid: 1 to 64"):
        best_fit(np.array(lengths), 64)


def packed(quotas, ends=True, seed=5, counts=(50, 30)):
    random = np.random.default_rng(0)
    lengths = [random.integers(1, 40, count) for count in counts]
    drawn = [
        DrawnSource(N, f"source {k}", quota)
        for k, (N, quota) in enumerate(zip(lengths, quotas, strict=True))
    ]
    return Packing(drawn, 64, seed, ends), lengths


@pytest.mark.parametrize("window", [7, 64, 1 << 16])
def test_each_epoch_has_every_sample_once_and_the_rows_end_with_the_quotas(monkeypatch, window):
    monkeypatch.setattr(packing, "WINDOW_SAMPLES", window)
    rows_of, lengths = packed([150, 45])
    rows = rows_of.rows(0, rows_of.total_rows)
    seen = Counter(place for row in rows for place in row)
    assert {seen[0, n] for n in range(50)} == {3}
    assert sorted(seen[1, n] for n in range(30)) == [1] * 15 + [2] * 15
    assert all(0 < sum(lengths[k][n] for k, n in row) <= 64 for row in rows)
    with pytest.raises(IndexError, match=f"the packing has {len(rows):,} rows"):
        rows_of.rows(len(rows), 1)


@pytest.mark.parametrize("window", [7, 1 << 16])
def test_a_row_is_the_same_whoever_asks_for_it_and_when(monkeypatch, window):
    monkeypatch.setattr(packing, "WINDOW_SAMPLES", window)
    whole = packed([2, 1], ends=False)[0].rows(0, 300)
    for first in (290, 3, 150, 0, 299):
        assert packed([2, 1], ends=False)[0].rows(first, 1) == [whole[first]]
    asked, _ = packed([2, 1], ends=False)
    for first in (290, 3, 150, 4, 299):
        assert asked.rows(first, 1) == [whole[first]]


def test_rows_come_in_another_order_with_another_seed_and_in_each_epoch():
    first, other = (packed([50, 30], seed=seed)[0].rows(0, 20) for seed in (5, 6))
    assert first != other
    lengths = np.full(100, 8)
    rows = Packing(by_epochs([lengths], ["a"], [2.0]), 64, 1, True)
    per_epoch = rows.total_rows // 2
    one, two = (rows.rows(n * per_epoch, per_epoch) for n in (0, 1))
    assert sorted(place for row in one for place in row) == sorted(p for row in two for p in row)
    assert not {frozenset(row) for row in one} & {frozenset(row) for row in two}


def test_rows_of_a_window_do_not_come_by_length():
    lengths = np.arange(1, 2001) % 64 + 1
    rows = Packing(by_epochs([lengths], ["a"], [1.0]), 64, 1, True).rows(0, 400)
    longest = [max(lengths[n] for _, n in row) for row in rows]
    assert abs(np.mean(longest[:200]) - np.mean(longest[200:])) < 6


def test_weights_are_shares_of_the_tokens_whatever_the_lengths():
    random = np.random.default_rng(1)
    lengths = [random.integers(200, 300, 400), random.integers(10, 20, 5000)]
    rows = Packing(by_weights(lengths, ["long", "short"], [3.0, 1.0]), 512, 1).rows(0, 3000)
    tokens = [
        sum(lengths[k][n] for row in rows for k, n in row if k == source) for source in (0, 1)
    ]
    assert tokens[0] / sum(tokens) == pytest.approx(0.75, abs=0.01)


def test_epochs_are_rounded_to_whole_samples():
    counts = [each.quota for each in by_epochs([np.ones(10), np.ones(7)], "ab", [0.25, 1.5])]
    assert counts == [2, 10]


@pytest.mark.parametrize("long", [0.0, 0.05, 0.3])
def test_rows_of_a_realistic_mixture_are_almost_full(long):
    """Lengths of dialogs are log-normal; a share is long thinking. 97 % is the least."""
    random = np.random.default_rng(2)
    short = random.lognormal(5.3, 0.6, 8000)
    thinking = random.lognormal(7.2, 0.5, int(8000 * long))
    lengths = np.clip(np.concatenate([short, thinking]), 2, 4096).astype(np.int64)
    packing = Packing(by_epochs([lengths], ["a"], [1.0]), 4096, 1, True)
    assert lengths.sum() / (packing.total_rows * 4096) > 0.99


def test_windows_hold_memory_down_and_rows_full(monkeypatch):
    monkeypatch.setattr(packing, "WINDOW_SAMPLES", 500)
    lengths = np.random.default_rng(3).integers(5, 400, 5000)
    rows = Packing(by_epochs([lengths], ["a"], [1.0]), 1024, 1, True)
    assert lengths.sum() / (rows.total_rows * 1024) > 0.97
    assert rows._window.cache_info().currsize <= 2
