"""The pretraining data: sequences of many token files, mixed by weight, without an index.

Megatron's blended datasets materialise document, sample, shuffle and blend indices. Here a source
is one endless stream of tokens (`stream.py`), which source the next sequence is from a formula
(`order.py`), and files are opened when they are read (`files.py`): a run starts as fast at any
size, resumes at any step, and the loader's whole state is the number of steps done.

    mixture = Mixture(record.part_of(step), record.idle)     # record.py: what the run is fed from
    rows = mixture.batch(mixture.first_sample(step) + first_row, count)
    windows_NS1 = mixture.held_out(source, max_tokens)

Legend: B sequences, S their length, S1 = S + 1 (inputs and labels overlap), N windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_qwen3.config import ConfigError
from megatron_qwen3.pretrain.files import SourceFiles
from megatron_qwen3.pretrain.order import Interleave
from megatron_qwen3.pretrain.record import Part
from megatron_qwen3.pretrain.stream import Range

Int64 = npt.NDArray[np.int64]

SCAN_BYTES = 1 << 28  # what check_vocabulary reads of all sources together before the first step


@dataclass(frozen=True)
class Place:
    """What a sample is: `ranges` of tokens of a source, read for the `epoch`-th time (from 0)."""

    source: int
    epoch: int
    ranges: list[Range]


class Rows(NamedTuple):
    """Samples: inputs, labels [B, S], sources [B], and positions in the document [B, S] if asked.

    A label is the token that follows the input in its source, also where a range ends.
    """

    tokens_BS: Int64
    labels_BS: Int64
    sources_B: Int64
    positions_BS: Int64 | None


class Mixture:
    """Samples 0, 1, 2, … of a part of a run, each a pure function of the part and its number.

    The part's step s trains samples [first_sample(s), first_sample(s) + global_batch), whichever
    rank asks for which of them.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self.sequence_length = part.sequence_length
        self.sources = tuple(feed.source for feed in part.feeds)
        self.names = tuple(source.name for source in self.sources)
        self.files = tuple(SourceFiles(source) for source in self.sources)
        self._interleave = Interleave(part.quotas())
        self._readings = part.readings()
        self._vocab_size: int | None = None

    def first_sample(self, step: int) -> int:
        return (step - self.part.first_step) * self.part.global_batch

    def locate(self, sample: int) -> Place:
        """Where a sample's tokens are."""
        source, earlier = self._interleave.locate(sample)
        reading = self._readings[source]
        return Place(source, reading.epoch(earlier), reading.ranges(earlier))

    def batch(self, first: int, count: int, with_positions: bool = False) -> Rows:
        """Samples [first, first + count)."""
        tokens_BS = np.empty((count, self.sequence_length), np.int64)
        labels_BS = np.empty_like(tokens_BS)
        sources_B = np.empty(count, np.int64)
        positions_BS = np.empty_like(tokens_BS) if with_positions else None
        for row in range(count):
            place = self.locate(first + row)
            sources_B[row] = place.source
            self._read(place, tokens_BS[row], labels_BS[row])
            if positions_BS is not None:
                positions_BS[row] = self._positions(place)
        return Rows(tokens_BS, labels_BS, sources_B, positions_BS)

    def held_out(self, source: int, max_tokens: int) -> Int64:
        """The first windows of a source's held-out end, in order: [N, S1].

        N·S is at most `max_tokens` but N at least 1, or 0 where the end is shorter than a window.
        """
        size, held_out = self.sequence_length, self.sources[source].held_out
        count = min(max(0, held_out - 1) // size, max(1, max_tokens // size))
        start = self.sources[source].tokens - held_out
        if not count:
            return np.empty((0, size + 1), np.int64)
        tokens = self._checked(source, start, start + count * size + 1).astype(np.int64)
        return np.lib.stride_tricks.sliding_window_view(tokens, size + 1)[::size].copy()

    def check_vocabulary(self, vocab_size: int, scan_bytes: int = SCAN_BYTES) -> None:
        """ConfigError where a source has an id without an embedding in the model.

        The first 256 MiB, of all sources together, are read now; every sample when it is read.
        """
        self._vocab_size = vocab_size
        share = scan_bytes // len(self.sources)
        if not share:
            return
        for index, source in enumerate(self.sources):
            first = self.files[index].read(0, 1)
            self._checked(index, 0, min(source.tokens, max(1, share // first.itemsize)))

    def _read(self, place: Place, tokens_S: Int64, labels_S: Int64) -> None:
        done = 0
        for first, last in place.ranges:
            ids = self._checked(place.source, first, last + 1)
            tokens_S[done : done + last - first] = ids[:-1]
            labels_S[done : done + last - first] = ids[1:]
            done += last - first

    def _positions(self, place: Place) -> Int64:
        """Each token's distance from the last one at which a document or a range began, [S]."""
        starts, done = [], 0
        for first, last in place.ranges:
            documents = self.files[place.source].document_starts(first + 1, last)
            starts += [done, *(done + token - first for token in documents)]
            done += last - first
        positions_S = np.arange(done)
        lengths = np.diff([*starts, done])
        positions_S -= np.repeat(starts, lengths)
        return positions_S

    def _checked(self, index: int, first: int, last: int) -> npt.NDArray[Any]:
        tokens = self.files[index].read(first, last)
        if self._vocab_size is None:
            return tokens
        lowest, highest = int(tokens.min()), int(tokens.max())
        if lowest < 0 or highest >= self._vocab_size:
            prefix, _ = self.files[index].place(first)
            raise ConfigError(
                f"data.sources.{self.names[index]}: {prefix}.bin holds token "
                f"{highest if lowest >= 0 else lowest}, model.vocab_size = {self._vocab_size}; "
                f"valid ids: 0 to {self._vocab_size - 1}. Was it tokenized for this model?"
            )
        return tokens
