"""The token files of a source as one row of tokens, each opened when it is first read.

A source of a large corpus is hundreds of shards, a curriculum tens of thousands: opening them all
would take minutes on a cluster's file system. The manifest has their sizes.

    files = SourceFiles(source)
    files.read(first, last)               # token ids, across the borders of shards
    files.document_starts(first, last)
    check(sources)                        # once for all: whether the files exist

Each file is checked when it is opened: its size, and its mark if the source has one
(`data_prep/fingerprint.py`), so that no other text is read in place of the mixed one.
"""

import errno
import os
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.curriculum import Source
from data_prep.fingerprint import mark
from data_prep.indexed import IndexedReader
from data_prep.stretches import ShardFile, ShardStretches, ends_of
from megatron_qwen3.config import ConfigError

_SIZES = 20_000  # of files whose sizes are checked before the first step
_RECENT = 64  # stretches of a source that are kept
_OPEN_FILES = 8192  # memory maps of one process; the operating system allows about 65,000


class SourceFiles:
    """Reads one source. ConfigError where a shard is missing, cut short or changed."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._recent: dict[int, ShardFile] = {}
        self.has_removed = False  # whether any open file has removed documents

    def read(self, first: int, last: int) -> npt.NDArray[Any]:
        """Token ids [last - first], in the type of the files."""
        parts = [self._open(n).tokens[a:b] for n, a, b in self._pieces(first, last)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def text_of_rows(self, first: int, last: int) -> list[int]:
        """The number of text tokens in each row of [first, last)."""
        length = self.source.row_length
        return [
            tokens
            for n, a, b in self._pieces(first, last)
            for tokens in self._open(n).text_of_rows(a // length, b // length)
        ]

    def document_starts(self, first: int, last: int) -> list[int]:
        """The tokens of [first, last) that begin a document."""
        return [
            self._start(n) + token - self._shard(n).start
            for n, a, b in self._pieces(first, last)
            for token in self._open(n).document_starts(a, b)
        ]

    def removed(self, first: int, last: int) -> list[tuple[int, int]]:
        """Ranges of tokens in [first, last) that belong to removed documents."""
        return [
            (moved + begin, moved + end)
            for n, a, b in self._pieces(first, last)
            if (removed := self._open(n).removed)
            for moved in [self._start(n) - self._shard(n).start]
            for begin, end in removed.within(a, b)
        ]

    def place(self, token: int) -> tuple[str, int]:
        """The shard that holds a token, as a prefix of paths, and the token's number there."""
        n = self._shard_of(token)
        return self._prefix(n), self._shard(n).start + token - self._start(n)

    @property
    def _where(self) -> str:
        return f"source {self.source.name}"

    def _pieces(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """(stretch, first, last) of each stretch's part of a range, as tokens of its file."""
        n = self._shard_of(first)
        while first < last:
            end = min(last, self._ends[n])
            if first < end:
                in_file = self._shard(n).start - self._start(n)
                yield n, in_file + first, in_file + end
            first, n = end, n + 1

    @cached_property
    def _ends(self) -> Sequence[int]:
        return ends_of(self.source.shards)

    def _shard_of(self, token: int) -> int:
        return bisect_right(self._ends, token)

    def _start(self, n: int) -> int:
        return self._ends[n - 1] if n else 0

    def _shard(self, n: int) -> ShardFile:
        """A stretch, cached: among many, finding it takes as long as reading its tokens."""
        if n not in self._recent:
            if len(self._recent) == _RECENT:
                self._recent.clear()
            self._recent[n] = self.source.shards[n]
        return self._recent[n]

    def _prefix(self, n: int) -> str:
        return os.path.join(self.source.folder, self._shard(n).path)

    def _open(self, n: int) -> IndexedReader:
        prefix, shard = self._prefix(n), self._shard(n)
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
        self.has_removed = self.has_removed or reader.removed is not None
        if found != known:
            raise ConfigError(
                f"{self._where}: {prefix}.bin holds other text than when it was mixed or first "
                "read; restore the old file, or mix again from the new inventory"
            )
        return reader


def check(files: Sequence[SourceFiles]) -> None:
    """ConfigError where a .bin is missing, or has another size; opens one of each folder.

    Each file is checked once, whatever sources share it. Sizes are read of at most _SIZES files,
    evenly spread; the others must exist in their folders. Other faults of these are reported when
    they are opened.
    """
    for sources in _by_folder(files):
        listed, count = _files_of(sources)
        width, every = sources[0]._open(0).tokens.itemsize, -(-count // _SIZES)
        lying = _Lying(sources[0].source.folder)
        for n, (path, tokens) in enumerate(listed):
            if fault := lying.fault(path, tokens, 0 if n % every else width):
                raise ConfigError(f"{_where(sources, path)}: {fault}")


class _Lying:
    """The files in a folder of shards; each subfolder is read once, as paths come in order."""

    def __init__(self, folder: str) -> None:
        self._folder, self._within = folder, ""
        self._names: set[str] = set()

    def fault(self, path: str, tokens: int, width: int) -> str:
        """The fault of PATH.bin, or "". width: of a token in bytes; 0 checks no size."""
        name, size = os.path.join(self._folder, f"{path}.bin"), tokens * width
        try:
            if not width:
                return "" if self._has(path) else f"{name}: {os.strerror(errno.ENOENT)}"
            actual = os.stat(name).st_size
        except OSError as error:
            return f"{name}: {error.strerror or 'cannot be read'}"
        if actual == size:
            return ""
        return (
            f"{name} has {actual:,} bytes, {tokens:,} tokens were {size:,}: it was cut short or "
            "written anew; tokenize again, or mix again from the new inventory"
        )

    def _has(self, path: str) -> bool:
        within, name = os.path.split(path)
        if within != self._within or not self._names:
            self._names = set(os.listdir(os.path.join(self._folder, within) or "."))
            self._within = within
        return f"{name}.bin" in self._names


def _by_folder(files: Iterable[SourceFiles]) -> Iterable[list[SourceFiles]]:
    """Groups of sources of one token width: of one folder, or single sources without a folder."""
    found: dict[tuple[str, str], list[SourceFiles]] = defaultdict(list)
    for of in files:
        folder = of.source.folder
        found[folder, "" if folder else of.source.name].append(of)
    return found.values()


def _files_of(files: Iterable[SourceFiles]) -> tuple[Iterable[tuple[str, int]], int]:
    """(path, tokens) of each file of one folder's sources, and the number of files."""
    stored: dict[int, list[ShardStretches]] = defaultdict(list)
    found: dict[str, int] = {}
    for shards in (of.source.shards for of in files):
        if isinstance(shards, ShardStretches):
            stored[id(shards.store)].append(shards)
        else:
            found.update((shard.path, shard.file_tokens) for shard in shards)
    stores = [(parts[0].store, parts[0].store.used_by(parts)) for parts in stored.values()]
    of_stores = ((file.path, file.tokens) for store, used in stores for file in store.listed(used))
    count = len(found) + sum(int(np.count_nonzero(used)) for _, used in stores)
    return chain(sorted(found.items()), of_stores), count


def _where(files: Iterable[SourceFiles], path: str) -> str:
    """The name of the first source that has this file."""
    return next(of._where for of in files if any(shard.path == path for shard in of.source.shards))


@lru_cache(maxsize=_OPEN_FILES)
def _reader(prefix: str, has_mark: bool) -> tuple[IndexedReader, str]:
    """The open reader, and the mark of its content if `has_mark`."""
    return IndexedReader(prefix), mark(prefix) if has_mark else ""
