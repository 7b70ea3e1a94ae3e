"""A source as an endless stream of tokens, and the part of it already read: arithmetic only.

An epoch of a source is its chunks of 131,072 tokens in an order of its own; epoch follows epoch.
Place v of this `Stream` is thus a token of the source by a closed formula that is independent of
sequences. `Reading` cuts sequences of any length from the stream and shuffles them in blocks. Since
a sequence may begin at any place, the progress in a source is one number of tokens, and a change of
the sequence length neither skips a token nor repeats one:

    reading = Reading(Stream("web", tokens, seed), Cursor(), sequence_length=4096)
    reading.ranges(j)          # the tokens of its j-th sequence, in the source
    reading.cursor(done)       # the cursor after `done` sequences, for the next Reading

The shuffle works in blocks that end with the epoch and, where the number of sequences is known
beforehand, with the last of these. A reading that stops elsewhere leaves an unfinished block: its
unread places are the cursor's `gaps`, which the next reading takes first.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Self

from megatron_qwen3.pretrain.order import Shuffle, epoch_key, mixed

CHUNK_TOKENS = 1 << 17  # few sequences of 32,768 tokens cross the end of one
BLOCK_SEQUENCES = 256

Range = tuple[int, int]  # [first, last)


@dataclass(frozen=True)
class Cursor:
    """The places below `position` are read, except those in `gaps` (ascending, disjoint)."""

    position: int = 0
    gaps: tuple[Range, ...] = ()

    @property
    def tokens_read(self) -> int:
        return self.position - sum(last - first for first, last in self.gaps)

    def read_of(self, first: int, last: int) -> int:
        """Number of places in [first, last) that are read."""
        gaps = (min(last, b) - max(first, a) for a, b in self.gaps)
        until = min(last, self.position)
        return max(0, until - first) - sum(gap for gap in gaps if gap > 0)


@dataclass(frozen=True)
class Stream:
    """The order in which a source's `tokens` training tokens come, epoch after epoch."""

    name: str
    tokens: int
    seed: int
    chunk_tokens: int = CHUNK_TOKENS

    @classmethod
    def of_rows(cls, name: str, tokens: int, seed: int, row_length: int) -> Self:
        """A stream whose chunks are whole rows, so that sequences of whole rows never cut one."""
        rows = max(1, CHUNK_TOKENS // row_length)
        return cls(name, tokens, seed, rows * row_length)

    def ranges(self, place: int, count: int) -> Iterator[Range]:
        """The source's tokens at the stream's places [place, place + count), in order."""
        while count:
            epoch, in_epoch = divmod(place, self.tokens)
            first, last = self._rest_of_chunk(epoch, in_epoch)
            last = min(last, first + count)
            yield first, last
            place, count = place + last - first, count - (last - first)

    def places(self, first: int, last: int, epoch: int) -> Iterator[Range]:
        """The inverse: the places of the source's tokens [first, last) in an epoch."""
        size = self.chunk_tokens
        order, short_slot = _chunk_order(self, epoch)
        missing = order.size * size - self.tokens  # of the short chunk
        while first < last:
            chunk, offset = divmod(first, size)
            slot = order.position(chunk)
            start = epoch * self.tokens + slot * size - (missing if slot > short_slot else 0)
            count = min(last - first, size - offset)
            yield start + offset, start + offset + count
            first += count

    def _rest_of_chunk(self, epoch: int, in_epoch: int) -> Range:
        """The source's tokens from a place of an epoch to the end of its chunk.

        All chunks are equally long except the source's last one, which lies somewhere in the
        middle.
        """
        size = self.chunk_tokens
        order, short_slot = _chunk_order(self, epoch)
        short_tokens = self.tokens - (order.size - 1) * size
        beyond_short = in_epoch - short_slot * size
        if beyond_short < 0:
            slot, offset = divmod(in_epoch, size)
        elif beyond_short < short_tokens:
            slot, offset = short_slot, beyond_short
        else:
            slot, offset = divmod(beyond_short - short_tokens, size)
            slot += short_slot + 1
        chunk = order[slot]
        return chunk * size + offset, min((chunk + 1) * size, self.tokens)


@lru_cache(maxsize=1 << 14)
def _chunk_order(stream: Stream, epoch: int) -> tuple[Shuffle, int]:
    """The order of an epoch's chunks, and the place of the source's last chunk in it."""
    chunks = -(-stream.tokens // stream.chunk_tokens)
    order = Shuffle(chunks, epoch_key(stream.seed, stream.name, epoch))
    return order, order.position(chunks - 1)


class Reading:
    """Sequences of one length cut from a stream, from a cursor on.

    sequences: their number, if it is known: then their end is a plain place of the
    stream, `cursor(sequences).gaps` empty, however they were shuffled.
    """

    def __init__(
        self, stream: Stream, start: Cursor, sequence_length: int, sequences: int | None = None
    ) -> None:
        self.stream, self.sequence_length, self.sequences = stream, sequence_length, sequences
        self._start = start
        # As if the gaps lay directly before the cursor, so that the unread part is one stretch.
        self._origin = start.tokens_read
        self._gap_ends = list(accumulate(last - first for first, last in start.gaps))
        gap_tokens = self._gap_ends[-1] if self._gap_ends else 0
        self._first_shuffled = -(-gap_tokens // sequence_length)

    def ranges(self, j: int) -> list[Range]:
        """The source's tokens of sequence j; they add up to sequence_length."""
        place = self._origin + self._shuffled(j) * self.sequence_length
        return [
            piece
            for first, last in self._places(place, self.sequence_length)
            for piece in self.stream.ranges(first, last - first)
        ]

    def epoch(self, j: int) -> int:
        """How often the source was read before the stretch in which sequence j begins."""
        return (self._origin + j * self.sequence_length) // self.stream.tokens

    def cursor(self, done: int) -> Cursor:
        """The cursor after the first `done` sequences, whatever comes next."""
        first, size, _ = self._block(done - 1) if done else (0, 0, 0)
        end = max(first + size, done)
        unread = sorted(self._shuffled(j) for j in range(done, end))
        position = self._origin + end * self.sequence_length
        gaps = [place for n in unread for place in self._places_of(n)]
        if position < self._start.position:  # still within its first gaps
            gaps += self._places(position, self._start.position - position)
            position = self._start.position
        return Cursor(position, tuple(_joined(gaps)))

    def _shuffled(self, j: int) -> int:
        """The number of the stretch of unread tokens that is read as the j-th sequence."""
        first, size, key = self._block(j)
        return first + Shuffle(size, key)[j - first] if size > 1 else j

    def _block(self, j: int) -> tuple[int, int, int]:
        """(first, size, key) of the sequences that j is shuffled with.

        A sequence across two epochs keeps its place, as do those in gaps.
        """
        length, tokens = self.sequence_length, self.stream.tokens
        epoch = (self._origin + j * length) // tokens
        first = max(self._first_shuffled, -((self._origin - epoch * tokens) // length))
        end = ((epoch + 1) * tokens - self._origin) // length
        if self.sequences is not None:
            end = min(end, self.sequences)
        if not first <= j < end:
            return j, 1, 0
        number = (j - first) // BLOCK_SEQUENCES
        first += number * BLOCK_SEQUENCES
        key = epoch_key(self.stream.seed, self.stream.name, epoch)
        return first, min(BLOCK_SEQUENCES, end - first), mixed(key, number + 1)

    def _places_of(self, n: int) -> Iterator[Range]:
        return self._places(self._origin + n * self.sequence_length, self.sequence_length)

    def _places(self, unread: int, count: int) -> Iterator[Range]:
        """The stream's places of [unread, unread + count), counted as if gaps lay together."""
        number = bisect_right(self._gap_ends, unread - self._origin)
        while count and unread < self._start.position:
            left = self._gap_ends[number] - (unread - self._origin)
            last = self._start.gaps[number][1]
            taken = min(left, count)
            yield last - left, last - left + taken
            unread, count, number = unread + taken, count - taken, number + 1
        if count:
            yield unread, unread + count


def _joined(ranges: Iterable[Range]) -> list[Range]:
    """Ascending ranges, with adjacent ones joined."""
    joined: list[Range] = []
    for first, last in ranges:
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined
