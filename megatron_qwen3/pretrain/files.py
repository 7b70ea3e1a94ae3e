"""The token files of a source as one row of tokens, each opened when it is first read.

A source of a large corpus is hundreds of shards, a curriculum tens of thousands: opening them all
would take minutes on a cluster's file system. What they hold the manifest says.

    files = SourceFiles(source)
    files.read(first, last)               # token ids, across the borders of shards
    files.document_starts(first, last)
    check(sources)                        # once for all: whether the files are there

Each file is looked at when it is opened: its size, and its mark where the source has one
(`data_prep/fingerprint.py`), so that no other text is read in place of what was mixed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.curriculum import Source
from data_prep.fingerprint import mark
from data_prep.indexed import IndexedReader
from data_prep.stretches import Stretches, ends_of
from megatron_qwen3.config import ConfigError

_OPEN_FILES = 8192  # memory maps of one process; the operating system allows about 65,000


class SourceFiles:
    """Reads one source. ConfigError where a shard is missing, cut short or not what it was."""

    def __init__(self, source: Source) -> None:
        self.source = source

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
            self._start(n) + token - self.source.shards[n].start
            for n, a, b in self._pieces(first, last)
            for token in self._open(n).document_starts(a, b)
        ]

    def place(self, token: int) -> tuple[str, int]:
        """The shard that holds a token, as a prefix of paths, and the token's number there."""
        n = self._shard_of(token)
        return self._prefix(n), self.source.shards[n].start + token - self._start(n)

    @property
    def _where(self) -> str:
        return f"source {self.source.name}"

    def _pieces(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """(stretch, first, last) of what lies in each, as tokens of its file."""
        n = self._shard_of(first)
        while first < last:
            end = min(last, int(self._ends[n]))
            if first < end:
                in_file = self.source.shards[n].start - self._start(n)
                yield n, in_file + first, in_file + end
            first, n = end, n + 1

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return ends_of(self.source.shards)

    def _shard_of(self, token: int) -> int:
        return int(np.searchsorted(self._ends, token, side="right"))

    def _start(self, n: int) -> int:
        return int(self._ends[n - 1]) if n else 0

    def _prefix(self, n: int) -> str:
        return os.path.join(self.source.folder, self.source.shards[n].path)

    def _open(self, n: int) -> IndexedReader:
        prefix, shard = self._prefix(n), self.source.shards[n]
        expected, known = shard.file_tokens, shard.mark
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


def check(files: Sequence[SourceFiles]) -> None:
    """ConfigError where a .bin is missing or has another size; opens one of each folder.

    Each is asked for once, whatever sources share it: there are ten thousands of them.
    """
    widths: dict[str, int] = {}
    for of in files:
        folder = of.source.folder
        if folder not in widths:
            widths[folder] = of._open(0).tokens.itemsize
    for folder, path, tokens in _all_files([of.source for of in files]):
        name, expected = os.path.join(folder, f"{path}.bin"), tokens * widths[folder]
        try:
            actual = os.stat(name).st_size
        except OSError as error:
            where, reason = _where(files, path), error.strerror or "cannot be read"
            raise ConfigError(f"{where}: {name}: {reason}") from None
        if actual != expected:
            raise ConfigError(
                f"{_where(files, path)}: {name} has {actual:,} bytes, "
                f"{tokens:,} tokens were {expected:,}: it was cut short or written anew; "
                "tokenize again, or mix again from the new inventory"
            )


def _all_files(sources: Iterable[Source]) -> Iterator[tuple[str, str, int]]:
    """(folder, path, tokens) of each file of any of the sources."""
    stored: dict[tuple[str, int], list[Stretches]] = defaultdict(list)
    seen: set[tuple[str, str]] = set()
    for source in sources:
        if isinstance(source.shards, Stretches):
            stored[source.folder, id(source.shards.store)].append(source.shards)
            continue
        for shard in source.shards:
            if (source.folder, shard.path) not in seen:
                seen.add((source.folder, shard.path))
                yield source.folder, shard.path, shard.file_tokens
    for (folder, _), parts in stored.items():
        store = parts[0].store
        for number in store.file_numbers(parts):
            file = store.files[number]
            yield folder, file.path, file.tokens


def _where(files: Iterable[SourceFiles], path: str) -> str:
    """The first source that has this file."""
    return next(of._where for of in files if any(shard.path == path for shard in of.source.shards))


@lru_cache(maxsize=_OPEN_FILES)
def _reader(prefix: str, has_mark: bool) -> tuple[IndexedReader, str]:
    """The open pair, and the mark of its contents if that is asked for."""
    return IndexedReader(prefix), mark(prefix) if has_mark else ""
