"""The pretraining data: windows of several token files, mixed by weight, without an index.

Megatron's blended datasets materialise document, sample, shuffle and blend indices. Here a source
is one stream of tokens and its window w the slice [w·S, w·S + S + 1). Which window of which source
global sample i is, `order.py` answers in closed form, so opening takes as long at any size, a run
resumes at any step, and the loader's whole state is how many samples were consumed.

    mixture = Mixture(config.data, config.run.seed)
    mixture.check_vocabulary(config.model.vocab_size)
    tokens_BS, labels_BS, sources_B = mixture.batch(step * G + first_row, rows)
    windows_NS1 = mixture.held_out(source, max_tokens)

Legend: B sequences, S = data.sequence_length, S1 = S + 1 (inputs and labels overlap), N windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.indexed import IndexedReader
from data_prep.tokenizer import token_bytes
from megatron_qwen3.config import ConfigError, DataConfig, SourceConfig
from megatron_qwen3.pretrain.order import Schedule, epoch_key, shuffled

Int64 = npt.NDArray[np.int64]

SCAN_BYTES = 1 << 28  # what check_vocabulary reads of each source before the first step


class Sample(NamedTuple):
    """One training window: S + 1 consecutive token ids of one source."""

    tokens: Int64
    source: int


@dataclass(frozen=True)
class _Source:
    name: str
    path: str
    stream: npt.NDArray[Any]
    num_windows: int
    held_out_start: int


class Mixture:
    """Global samples 0, 1, 2, … of a stage, each a pure function of (data, seed, its number).

    A step trains samples [step·G, (step + 1)·G), whichever rank asks for which of them.
    Raises ConfigError, naming source, path and numbers, where a file is missing, cut short or too
    small.
    """

    def __init__(self, data: DataConfig, seed: int) -> None:
        if not data.sources:
            raise ConfigError("data.sources is empty: a run needs at least one [[data.sources]]")
        self.sequence_length = data.sequence_length
        self.sources = tuple(_open(source, data) for source in data.sources)
        self._tokenizer = data.tokenizer
        self._schedule = Schedule(tuple(source.weight for source in data.sources))
        self._seed = seed
        self._vocab_size: int | None = None

    @property
    def num_sources(self) -> int:
        return len(self.sources)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(source.name for source in self.sources)

    def locate(self, sample: int) -> tuple[int, int, int]:
        """(source, epoch, window within the source) of a global sample."""
        index, earlier = self._schedule.locate(sample)
        source = self.sources[index]
        epoch, position = divmod(earlier, source.num_windows)
        key = epoch_key(self._seed, source.name, epoch)
        return index, epoch, shuffled(position, source.num_windows, key)

    def sample(self, i: int) -> Sample:
        """Global sample i: token ids [S + 1] and its source."""
        index, _, window = self.locate(i)
        return Sample(self._window(index, window * self.sequence_length), index)

    def batch(self, first: int, count: int) -> tuple[Int64, Int64, Int64]:
        """Global samples [first, first + count): inputs [B, S], labels [B, S], sources [B]."""
        tokens_BS = np.empty((count, self.sequence_length), np.int64)
        labels_BS = np.empty_like(tokens_BS)
        sources_B = np.empty(count, np.int64)
        for row in range(count):
            tokens, sources_B[row] = self.sample(first + row)
            tokens_BS[row], labels_BS[row] = tokens[:-1], tokens[1:]
        return tokens_BS, labels_BS, sources_B

    def held_out(self, source: int, max_tokens: int) -> Int64:
        """The first windows of a source's held-out end, in order: [N, S1].

        N·S is at most `max_tokens` but N at least 1; N is 0 where data.held_out is 0.
        """
        start, stream = self.sources[source].held_out_start, self.sources[source].stream
        available = max(0, len(stream) - start - 1) // self.sequence_length
        count = min(available, max(1, max_tokens // self.sequence_length))
        windows = [self._window(source, start + n * self.sequence_length) for n in range(count)]
        return np.array(windows, np.int64).reshape(count, self.sequence_length + 1)

    def check_vocabulary(self, vocab_size: int) -> None:
        """ConfigError where the tokenizer or a source has an id without an embedding in the model.

        The first 256 MiB of each source are read now; every window is checked when it is read.
        """
        if self._tokenizer and (size := len(token_bytes(self._tokenizer))) > vocab_size:
            raise ConfigError(
                f"data.tokenizer: {self._tokenizer} has {size:,} tokens, more than "
                f"model.vocab_size = {vocab_size:,}; valid: at least {size:,}"
            )
        self._vocab_size = vocab_size
        for index, source in enumerate(self.sources):
            self._check_ids(index, source.stream[: SCAN_BYTES // source.stream.itemsize])

    def _window(self, source: int, start: int) -> Int64:
        tokens = self.sources[source].stream[start : start + self.sequence_length + 1]
        if self._vocab_size is not None:
            self._check_ids(source, tokens)
        return tokens.astype(np.int64)

    def _check_ids(self, index: int, tokens: npt.NDArray[Any]) -> None:
        source, vocab_size = self.sources[index], self._vocab_size
        assert vocab_size is not None
        lowest, highest = int(tokens.min()), int(tokens.max())
        if lowest < 0 or highest >= vocab_size:
            raise ConfigError(
                f"data.sources.{source.name}: {source.path}.bin holds token "
                f"{highest if lowest >= 0 else lowest}, model.vocab_size = {vocab_size}; "
                f"valid ids: 0 to {vocab_size - 1}. Was it tokenized for this model?"
            )


def _open(config: SourceConfig, data: DataConfig) -> _Source:
    """Open one source and divide it: training windows first, then data.held_out of its tokens."""
    where = f"data.sources.{config.name}"
    try:
        stream = IndexedReader(config.path).tokens
    except ConfigError as error:
        raise ConfigError(f"{where}.path: {error}") from None
    needed = data.sequence_length + 1
    window = f"one window of data.sequence_length + 1 = {needed:,}"
    held_out = math.ceil(len(stream) * data.held_out)
    start = len(stream) - held_out
    if start < needed:
        raise ConfigError(
            f"{where}: {config.path} has {start:,} training tokens, fewer than {window}; "
            "shorten the sequences or give it more text"
        )
    if 0 < held_out < needed:
        raise ConfigError(
            f"{where}: data.held_out = {data.held_out} of the {len(stream):,} tokens of "
            f"{config.path} is {held_out:,}, fewer than {window}; "
            f"valid: 0, or at least {1.05 * needed / len(stream):.2g}"
        )
    num_windows = (start - 1) // data.sequence_length
    return _Source(config.name, config.path, stream, num_windows, start)
