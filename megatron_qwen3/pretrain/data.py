"""The pretraining data: sequences of many token files, mixed by weight, without an index.

Megatron's blended datasets materialise document, sample, shuffle and blend indices. Here a source
is one endless stream of tokens (`stream.py`), a formula gives the source of the next sequence
(`order.py`), and files are opened when they are read (`files.py`): a run starts equally fast at any
size, resumes at any step, and the loader's whole state is the number of steps done.

    mixture = Mixture(record.part_of(step), record.idle)     # record.py: the run's data
    rows = mixture.batch(mixture.first_sample(step) + first_row, count)
    rows = mixture.read(mixture.held_out(source, max_tokens))

Legend: B sequences, S their length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_qwen3.config import ConfigError
from megatron_qwen3.pretrain.files import SourceFiles
from megatron_qwen3.pretrain.order import Interleave
from megatron_qwen3.pretrain.record import RunPart
from megatron_qwen3.pretrain.stream import Range

Int64 = npt.NDArray[np.int64]

SCAN_BYTES = 1 << 28  # that check_vocabulary reads of all sources together before the first step


@dataclass(frozen=True)
class SamplePlace:
    """A sample: `ranges` of tokens of a source, read for the `epoch`-th time (from 0)."""

    source: int
    epoch: int
    ranges: list[Range]


class Documents(NamedTuple):
    """The documents of rows, for callers that keep them apart.

    starts: the places of each row, from 0, at which a document begins or the text is not continued;
    goes_on_BS: bool, whether a place's label is of the same document. The label of a document's
    last token is the first of the next one, which cannot be predicted.
    """

    starts: list[list[int]]
    goes_on_BS: npt.NDArray[np.bool_]


class InRows(NamedTuple):
    """For samples that are, in part, rows of packed text: bool [B, S].

    is_text_BS: False for filler; has_label_BS: False also at the end of a row's text, whose next
    token is filler, or the next row's.
    """

    is_text_BS: npt.NDArray[np.bool_]
    has_label_BS: npt.NDArray[np.bool_]


class SampleRows(NamedTuple):
    """Samples: inputs and labels [B, S], sources [B], and their documents if asked for.

    A label is the token that follows the input in its source, even at the end of a range. packed:
    None where no source of the mixture is packed. is_removed_BS: bool [B, S], where input or label
    is of a document that was removed; None where there is none.
    """

    tokens_BS: Int64
    labels_BS: Int64
    sources_B: Int64
    documents: Documents | None
    packed: InRows | None = None
    is_removed_BS: npt.NDArray[np.bool_] | None = None


class Mixture:
    """Samples 0, 1, 2, … of a part of a run, each a pure function of the part and its number.

    The part's step s trains samples [first_sample(s), first_sample(s) + global_batch), whichever
    ranks read them.
    """

    def __init__(self, part: RunPart) -> None:
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

    def locate(self, sample: int) -> SamplePlace:
        """The place of a sample's tokens."""
        source, earlier = self._interleave.locate(sample)
        reading = self._readings[source]
        return SamplePlace(source, reading.epoch(earlier), reading.ranges(earlier))

    def batch(self, first: int, count: int, with_documents: bool = False) -> SampleRows:
        """Samples [first, first + count)."""
        places = [self.locate(sample) for sample in range(first, first + count)]
        return self.read(places, with_documents)

    def held_out(self, source: int, max_tokens: int) -> list[SamplePlace]:
        """The first windows of a source's held-out end, in order, each as long as a sequence.

        Together at most `max_tokens`, but at least one; none where the end is too short for one.
        """
        size, held_out = self.sequence_length, self.sources[source].held_out
        after = 0 if self.sources[source].packed else 1  # for the last window's last label
        count = min(max(0, held_out - after) // size, max(1, max_tokens // size))
        start = self.sources[source].tokens - held_out
        firsts = range(start, start + count * size, size)
        return [SamplePlace(source, 0, [(first, first + size)]) for first in firsts]

    def read(self, places: Sequence[SamplePlace], with_documents: bool = False) -> SampleRows:
        """The rows at `places`, one per row."""
        tokens_BS = np.empty((len(places), self.sequence_length), np.int64)
        labels_BS = np.empty_like(tokens_BS)
        for row, place in enumerate(places):
            self._read(place, tokens_BS[row], labels_BS[row])
        sources_B = np.array([place.source for place in places], np.int64)
        documents = self._documents(places) if with_documents else None
        is_any_packed = any(source.packed for source in self.sources)
        packed = self._in_rows(places) if is_any_packed else None
        return SampleRows(tokens_BS, labels_BS, sources_B, documents, packed, self._removed(places))

    def check_vocabulary(self, vocab_size: int, scan_bytes: int = SCAN_BYTES) -> None:
        """ConfigError where a source has an id without an embedding in the model.

        The first 256 MiB, of all sources together, are checked now; every sample when it is read.
        """
        self._vocab_size = vocab_size
        share = scan_bytes // len(self.sources)
        if not share:
            return
        for index, source in enumerate(self.sources):
            first = self.files[index].read(0, 1)
            self._checked(index, 0, min(source.tokens, max(1, share // first.itemsize)))

    def _read(self, place: SamplePlace, tokens_S: Int64, labels_S: Int64) -> None:
        done, after = 0, 0 if self.sources[place.source].packed else 1
        for first, last in place.ranges:
            ids = self._checked(place.source, first, last + after)
            tokens_S[done : done + last - first] = ids[: last - first]
            labels_S[done : done + len(ids) - 1] = ids[1:]
            done += last - first
            if not after:  # any id: it is not trained
                labels_S[done - 1] = ids[-1]

    def _removed(self, places: Sequence[SamplePlace]) -> npt.NDArray[np.bool_] | None:
        """The removed places of samples that were just read, so that their files are open."""
        if not any(files.has_removed for files in self.files):
            return None
        is_removed_BS = np.zeros((len(places), self.sequence_length), np.bool_)
        for place, is_removed_S in zip(places, is_removed_BS, strict=True):
            done, tokens = 0, self.sources[place.source].tokens
            for first, last in place.ranges:
                # A range's last label is the token after it.
                for begin, end in self.files[place.source].removed(first, min(last + 1, tokens)):
                    in_row = done + max(0, begin - first - 1), done + min(end, last) - first
                    is_removed_S[slice(*in_row)] = True
                done += last - first
        return is_removed_BS if is_removed_BS.any() else None

    def _in_rows(self, places: Sequence[SamplePlace]) -> InRows:
        """The text and the trained places of each sample; all places without packing."""
        is_text_BS = np.ones((len(places), self.sequence_length), np.bool_)
        has_label_BS = np.ones_like(is_text_BS)
        for row, place in enumerate(places):
            source, done = self.sources[place.source], 0
            if not source.packed:
                continue
            length = source.row_length
            for first, last in place.ranges:
                for tokens in self.files[place.source].text_of_rows(first, last):
                    is_text_BS[row, done + tokens : done + length] = False
                    has_label_BS[row, done + tokens - 1 : done + length] = False
                    done += length
        return InRows(is_text_BS, has_label_BS)

    def _documents(self, places: Sequence[SamplePlace]) -> Documents:
        starts: list[list[int]] = []
        goes_on_BS = np.ones((len(places), self.sequence_length), np.bool_)
        for place, goes_on_S in zip(places, goes_on_BS, strict=True):
            in_row, done = set(), 0
            for first, last in place.ranges:
                # The label of a range's last token is the token after it.
                end = min(last + 1, self.sources[place.source].tokens)
                begins = self.files[place.source].document_starts(first + 1, end)
                goes_on_S[[done + token - first - 1 for token in begins]] = False
                in_row |= {done, *(done + token - first for token in begins if token < last)}
                done += last - first
            starts.append(sorted(in_row))
        return Documents(starts, goes_on_BS)

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
