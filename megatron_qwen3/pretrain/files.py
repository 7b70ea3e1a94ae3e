"""The token files of a source as one row of tokens, each opened when it is first read.

A source of a large corpus is hundreds of shards, a curriculum tens of thousands: opening them all
would take minutes on a cluster's file system. What they hold the manifest says.

    files = SourceFiles(source)
    files.read(first, last)               # token ids, across the borders of shards
    files.document_starts(first, last)

Each file is looked at when it is opened: its size, and its mark where the source has one
(`data_prep/fingerprint.py`), so that no other text is read in place of what was mixed.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.curriculum import Source
from data_prep.fingerprint import mark
from data_prep.indexed import IndexedReader
from megatron_qwen3.config import ConfigError

_OPEN_FILES = 8192  # memory maps of one process; the operating system allows about 65,000


class SourceFiles:
    """Reads one source. ConfigError where a shard is missing, cut short or not what it was."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._ends = list(accumulate(shard.tokens for shard in source.shards))

    def read(self, first: int, last: int) -> npt.NDArray[Any]:
        """Token ids [last - first], in the type of the files."""
        parts = [self._open(n).tokens[a:b] for n, a, b in self._pieces(first, last)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def text_of_rows(self, first: int, last: int) -> list[int]:
        """Of the rows that [first, last) is made of, how many tokens of each are text."""
        length = self.source.row_length
        return [
            tokens
            for n, a, b in self._pieces(first, last)
            for tokens in self._open(n).text_of_rows(a // length, b // length)
        ]

    def document_starts(self, first: int, last: int) -> list[int]:
        """Which tokens of [first, last) are the first of a document."""
        return [
            self._start(n) + token
            for n, a, b in self._pieces(first, last)
            for token in self._open(n).document_starts(a, b)
        ]

    def place(self, token: int) -> tuple[str, int]:
        """The shard that holds a token, as a prefix of paths, and the token's number there."""
        n = bisect_right(self._ends, token)
        return self._prefix(n), token - self._start(n)

    def check(self) -> None:
        """ConfigError where a .bin is missing or has another size; opens none of them."""
        first = self._open(0)
        for n, shard in enumerate(self.source.shards):
            path, size = f"{self._prefix(n)}.bin", shard.tokens * first.tokens.itemsize
            try:
                actual = os.stat(path).st_size
            except OSError as error:
                reason = error.strerror or "cannot be read"
                raise ConfigError(f"{self._where}: {path}: {reason}") from None
            if actual != size:
                raise ConfigError(
                    f"{self._where}: {path} has {actual:,} bytes, "
                    f"{shard.tokens:,} tokens were {size:,}: it was cut short or written anew; "
                    "tokenize again, or mix again from the new inventory"
                )

    @property
    def _where(self) -> str:
        return f"source {self.source.name}"

    def _pieces(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """(shard, first, last) of what lies in each shard."""
        n = bisect_right(self._ends, first)
        while first < last:
            start, end = self._start(n), min(last, self._ends[n])
            if first < end:
                yield n, first - start, end - start
            first, n = end, n + 1

    def _start(self, n: int) -> int:
        return self._ends[n - 1] if n else 0

    def _prefix(self, n: int) -> str:
        return os.path.join(self.source.folder, self.source.shards[n].path)

    def _open(self, n: int) -> IndexedReader:
        prefix, (_, expected, known) = self._prefix(n), self.source.shards[n]
        try:
            reader, found = _reader(prefix, has_mark=bool(known))
        except (ConfigError, OSError) as error:
            raise ConfigError(f"{self._where}: {error}") from None
        if len(reader.tokens) != expected:
            raise ConfigError(
                f"{self._where}: {prefix} holds {len(reader.tokens):,} tokens, but {expected:,} "
                "when it was mixed; mix again from the new inventory"
            )
        if (reader.row_length or 1) != self.source.row_length:
            raise ConfigError(
                f"{self._where}: {prefix} is in rows of {reader.row_length:,} tokens (0: in none), "
                "but was not when it was mixed or first read; mix again from the new inventory"
            )
        if found != known:
            raise ConfigError(
                f"{self._where}: {prefix}.bin holds other text than when it was mixed or first "
                "read; give back what it was, or mix again from the new inventory"
            )
        return reader


@lru_cache(maxsize=_OPEN_FILES)
def _reader(prefix: str, has_mark: bool) -> tuple[IndexedReader, str]:
    """The open pair, and the mark of its contents if that is asked for."""
    return IndexedReader(prefix), mark(prefix) if has_mark else ""
