"""Whatever lengths a source is read in and wherever it is stopped, each token comes in its turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_qwen3.pretrain import stream as module
from megatron_qwen3.pretrain.stream import Cursor, Range, Reading, Stream

BLOCK = 8
STREAMS = st.builds(
    Stream, st.just("text"), st.integers(1, 1_500), st.integers(0, 9), st.integers(1, 500)
)
# Lengths of sequences, how many are read, and how many of those were planned beyond them.
LEGS = st.lists(
    st.tuples(st.integers(1, 200), st.integers(0, 60), st.none() | st.integers(0, 20)), max_size=5
)


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_SEQUENCES", BLOCK)
        yield


def tokens_of(ranges: Iterable[Range]) -> Counter[int]:
    return Counter(token for first, last in ranges for token in range(first, last))


@settings(max_examples=40, deadline=None)
@given(stream=STREAMS, epoch=st.integers(0, 5))
def test_an_epoch_of_a_stream_is_every_token_once(stream: Stream, epoch: int) -> None:
    ranges = list(stream.ranges(epoch * stream.tokens, stream.tokens))
    assert tokens_of(ranges) == Counter(range(stream.tokens))
    assert all(last - first <= stream.chunk_tokens for first, last in ranges)


def test_epochs_have_orders_of_their_own() -> None:
    stream = Stream("text", 10_000, seed=1, chunk_tokens=100)
    first, second = (list(stream.ranges(e * 10_000, 10_000)) for e in (0, 1))
    assert first != second
    assert first != sorted(first)


@settings(max_examples=80, deadline=None)
@given(stream=STREAMS, legs=LEGS)
def test_changing_lengths_at_any_place_loses_no_token_and_repeats_none(
    stream: Stream, legs: list[tuple[int, int, int | None]]
) -> None:
    """What was delivered is the stream below the cursor, without the gaps: nothing else."""
    cursor, delivered = Cursor(), Counter[int]()
    for length, done, planned_beyond in legs:
        planned = None if planned_beyond is None else done + planned_beyond
        reading = Reading(stream, cursor, length, planned)
        for j in range(done):
            ranges = reading.ranges(j)
            assert sum(last - first for first, last in ranges) == length
            delivered += tokens_of(ranges)
        before, cursor = cursor, reading.cursor(done)
        assert cursor.tokens_read == before.tokens_read + done * length
        assert all(a < b for a, b in cursor.gaps)
    read = tokens_of(stream.ranges(0, cursor.position))
    for first, last in cursor.gaps:
        read -= tokens_of(stream.ranges(first, last - first))
    assert delivered == read
    assert max(delivered.values(), default=0) <= -(-cursor.position // stream.tokens)


@settings(max_examples=40, deadline=None)
@given(stream=STREAMS, length=st.integers(1, 200), sequences=st.integers(0, 60))
def test_a_planned_end_is_a_plain_place_of_the_stream(
    stream: Stream, length: int, sequences: int
) -> None:
    reading = Reading(stream, Cursor(), length, sequences)
    assert reading.cursor(sequences) == Cursor(sequences * length)
    delivered = tokens_of(r for j in range(sequences) for r in reading.ranges(j))
    assert delivered == tokens_of(stream.ranges(0, sequences * length))


@settings(max_examples=40, deadline=None)
@given(stream=STREAMS, length=st.integers(1, 100))
def test_no_token_comes_again_before_every_other_had_its_turn(stream: Stream, length: int) -> None:
    """But for those of the one sequence in which an epoch ends and the next begins."""
    reading = Reading(stream, Cursor(), length)
    seen: Counter[int] = Counter()
    for j in range(min(300, 3 * stream.tokens // length)):
        seen += tokens_of(reading.ranges(j))
        whole, rest = divmod((j + 1) * length, stream.tokens)
        assert max(seen.values()) <= whole + (rest > 0)


def test_sequences_of_a_block_are_shuffled_and_whole_pieces_of_text() -> None:
    stream = Stream("text", 100_000, seed=1, chunk_tokens=1_000)
    reading = Reading(stream, Cursor(), 50)
    places = [reading.ranges(j) for j in range(4 * BLOCK)]
    assert all(len(ranges) == 1 for ranges in places)
    in_order = [list(stream.ranges(50 * j, 50)) for j in range(4 * BLOCK)]
    assert places != in_order
    for block in range(4):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        assert sorted(places[part]) == sorted(in_order[part])


def test_gaps_are_few_and_read_first() -> None:
    stream = Stream("text", 100_000, seed=1, chunk_tokens=1_000)
    cursor = Reading(stream, Cursor(), 50).cursor(2 * BLOCK + 3)
    assert 1 <= len(cursor.gaps) <= BLOCK - 3
    assert cursor.position == 3 * BLOCK * 50
    gap_tokens = cursor.position - cursor.tokens_read
    following = Reading(stream, cursor, 10)
    in_gaps = [r for first, last in cursor.gaps for r in stream.ranges(first, last - first)]
    first_read = [r for j in range(gap_tokens // 10) for r in following.ranges(j)]
    assert tokens_of(first_read) == tokens_of(in_gaps)
    assert not following.cursor(gap_tokens // 10).gaps
