"""Stores the stretches of files that a source consists of: a few as rows, many in a mapped file.

A source of tens of trillions of tokens is a list of stretches of tens of thousands of files, a
curriculum has thousands of such sources. Beyond INLINE stretches they stand beside the manifest
that names them, in one file that is mapped into memory: opening a curriculum costs a little for
each source, and reading a source costs its own stretches.

    store = Store.read(path)
    source.shards = ShardStretches(store, first, count, tokens, fingerprint)
    source.shards[n]                    # ShardFile(path, tokens, mark, start, of)
    kept = CollectedStretches(); kept.add(shards); kept.write(folder, "curriculum")

The file, little-endian, for R stretches of F files: magic (8 bytes), R, F, bytes of all paths (u64
each); ROW × R; tokens of each file (u64 × F), marks (16 bytes × F), where paths end (u64 × F), and
the paths in UTF-8, end to end. Its name holds a hash of it, so that no manifest meets another's.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from glob import escape
from itertools import accumulate, compress
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.whole import write_whole

INLINE = 10_000  # stretches of all sources of a manifest, that stand in it
SUFFIX = ".stretches"
ROW = np.dtype([("file", "<u4"), ("start", "<u8"), ("tokens", "<u8")])
_HEADER = struct.Struct("<8sQQQ")
_MAGIC = b"MQSTRCH1"
_MARK = np.dtype("S16")
_BLOCK_ROWS = 1 << 16
_ENDS = re.compile(b"-([0-9a-f]{16}).stretches")  # of names: the rest JSON may have escaped


class ShardFile(NamedTuple):
    """Tokens [start, start + tokens) of PATH.bin, and the mark of that file (`fingerprint.py`).

    mark: "" in curricula of version 1, which say nothing of contents. of: how many tokens the file
    has; 0 where these are all.
    """

    path: str
    tokens: int
    mark: str = ""
    start: int = 0
    of: int = 0

    @property
    def file_tokens(self) -> int:
        return self.of or self.tokens

    @classmethod
    def from_row(cls, row: Sequence[Any], is_within: bool) -> ShardFile:
        """is_within: whether the path may not leave its folder. ValueError where the row lies."""
        shard = cls(*row)
        if is_within and leaves(shard.path):
            raise ValueError(_outside(shard.path))
        of = shard.file_tokens
        if not 0 <= shard.start <= shard.start + shard.tokens <= of:
            raise ValueError(f"{shard.path}: {_beyond(shard.start, shard.tokens, of)}")
        return shard

    def as_row(self) -> list[Any]:
        """The row for JSON, without usual values."""
        if self.of:
            return list(self)
        return list(self[:3]) if self.mark else list(self[:2])


class File(NamedTuple):
    """A token file of a store."""

    path: str
    mark: str
    tokens: int


class Store:
    """Files and stretches of them, in memory or mapped. rows: ROW [stretches]; outside: a path
    that leaves the folder of its source, or ""."""

    def __init__(self, rows: npt.NDArray[Any], files: Sequence[File], outside: str = "") -> None:
        self.rows, self.files, self.outside = rows, files, outside

    @classmethod
    def read(cls, path: Path) -> Store:
        """Raises ConfigError where the file is missing, cut short or none, or contradicts
        itself."""
        try:
            size = os.stat(path).st_size
            with open(path, "rb") as file:
                head = file.read(_HEADER.size)
        except FileNotFoundError:
            raise ConfigError(
                f"{path} does not exist; it belongs to the .json beside it: move both together"
            ) from None
        if len(head) < _HEADER.size or not head.startswith(_MAGIC):
            raise ConfigError(f"{path} holds no stretches of shards")
        _, rows, files, path_bytes = _HEADER.unpack(head)
        rows_end = _HEADER.size + ROW.itemsize * rows
        expected = rows_end + files * (8 + _MARK.itemsize + 8) + path_bytes
        if size != expected:
            raise ConfigError(f"{path} has {size:,} bytes, its header says {expected:,}")
        # As a plain array: a memmap's slices take as long as a file's reading.
        mapped = np.memmap(path, np.uint8, "r").view(np.ndarray)
        listed = _MappedFiles(mapped[rows_end:], files)
        stretches = mapped[_HEADER.size : rows_end].view(ROW)
        if fault := listed.fault() or _fault_of_rows(stretches, listed.tokens_F):
            raise ConfigError(f"{path} is damaged: {fault}")
        return cls(stretches, listed, listed.outside())

    def used_by(self, parts: Iterable[ShardStretches]) -> npt.NDArray[np.bool_]:
        """Whether any of these have a stretch of each file: bool [files]."""
        used = np.zeros(len(self.files), np.bool_)
        for part in parts:
            used[part.rows["file"]] = True
        return used

    def listed(self, used: npt.NDArray[np.bool_]) -> Iterator[File]:
        """The used files."""
        return compress(self.files, used.tolist())


class _MappedFiles(Sequence[File]):
    def __init__(self, data: npt.NDArray[Any], count: int) -> None:
        marks_at, ends_at = 8 * count, (8 + _MARK.itemsize) * count
        paths_at = ends_at + 8 * count
        self.tokens_F, self._marks = data[:marks_at].view("<u8"), data[marks_at:ends_at].view(_MARK)
        self._ends, self._paths = data[ends_at:paths_at].view("<u8"), data[paths_at:]

    def fault(self) -> str:
        """The fault of the paths, or ""."""
        last = int(self._ends[-1]) if len(self._ends) else 0
        if last != len(self._paths) or np.any(self._ends[1:] < self._ends[:-1]):
            return "its paths do not follow each other"
        return ""

    def outside(self) -> str:
        """A path that leaves its folder, or "". Looks at each only where there may be one."""
        begins = np.append(0, self._ends[:-1].astype(np.int64))
        is_absolute = self._paths[begins[begins < len(self._paths)]] == ord("/")
        if not is_absolute.any() and b".." not in self._paths.tobytes():
            return ""
        return next((file.path for file in self if leaves(file.path)), "")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, n: Any) -> Any:
        begin = int(self._ends[n - 1]) if n else 0
        path = self._paths[begin : int(self._ends[n])].tobytes()
        return File(os.fsdecode(path), os.fsdecode(self._marks[n]), int(self.tokens_F[n]))

    def __iter__(self) -> Iterator[File]:
        paths, begin = self._paths.tobytes(), 0
        columns = (self._marks.tolist(), self.tokens_F.tolist(), self._ends.tolist())
        for mark, tokens, end in zip(*columns, strict=True):
            yield File(os.fsdecode(paths[begin:end]), os.fsdecode(mark), tokens)
            begin = end


def _fault_of_rows(rows: npt.NDArray[Any], tokens_F: npt.NDArray[np.uint64]) -> str:
    """The first row that is no stretch of a file, or "". Goes block by block: there may be
    millions."""
    for first in range(0, len(rows), _BLOCK_ROWS):
        some = rows[first : first + _BLOCK_ROWS]
        if len(wrong := np.flatnonzero(some["file"] >= len(tokens_F))):
            n = int(wrong[0])
            return f"stretch {first + n:,} is of file {some['file'][n]} of {len(tokens_F):,}"
        start, of = some["start"], tokens_F[some["file"]]
        is_beyond = (start > of) | (some["tokens"] > of - start)
        if len(wrong := np.flatnonzero(is_beyond)):
            n = int(wrong[0])
            about = _beyond(int(start[n]), int(some["tokens"][n]), int(of[n]))
            return f"stretch {first + n:,} is {about}"
    return ""


def leaves(path: str) -> bool:
    """Whether a path lies outside of the folder that it is relative to."""
    return path.startswith("/") or ".." in path.split("/")


def _outside(path: str) -> str:
    return f"the shard {path!r} lies outside of its folder"


def _beyond(start: int, tokens: int, of: int) -> str:
    return f"tokens {start:,} to {start + tokens:,} of a file of {of:,}"


class ShardStretches(Sequence[ShardFile]):
    """Stretches [first, first + count) of a store. tokens: of all; fingerprint: as in Source."""

    def __init__(
        self, store: Store, first: int, count: int, tokens: int, fingerprint: str = ""
    ) -> None:
        self.store, self.first, self._size = store, first, count
        self.tokens, self.fingerprint = tokens, fingerprint

    @classmethod
    def of_row(cls, store: Store, row: Mapping[str, Any], is_within: bool) -> ShardStretches:
        """The stretches of a manifest's row; is_within as in ShardFile. ValueError where it
        lies."""
        first, count = row["stretches"]
        if not 0 <= first < first + count <= len(store.rows):
            raise ValueError(f"stretches {first} to {first + count} of {len(store.rows)}")
        if is_within and store.outside:
            raise ValueError(_outside(store.outside))
        found = cls(store, first, count, row["tokens"], row["fingerprint"])
        if found.tokens != found.rows["tokens"].sum():
            raise ValueError(f"{found.tokens:,} is not the sum of its stretches")
        return found

    @property
    def rows(self) -> npt.NDArray[Any]:
        return self.store.rows[self.first : self.first + self._size]

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> ShardFile: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ShardFile, ...]: ...
    def __getitem__(self, index: int | slice) -> ShardFile | tuple[ShardFile, ...]:
        places = range(self._size)[index]
        if isinstance(places, range):
            return tuple(self[k] for k in places)
        number, start, tokens = self.rows[places].tolist()
        path, mark, of = self.store.files[number]
        return ShardFile(path, tokens, mark, start, of if of != tokens else 0)

    def __iter__(self) -> Iterator[ShardFile]:
        return (self[k] for k in range(self._size))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]


def ends_of(shards: Sequence[ShardFile]) -> Sequence[int]:
    """Where each of a source's stretches ends among its tokens: whole numbers to be bisected."""
    if isinstance(shards, ShardStretches):
        return np.cumsum(shards.rows["tokens"], dtype=np.int64).data
    return list(accumulate(shard.tokens for shard in shards))


class Known:
    """Text that some stretches have, however they are cut."""

    def __init__(self, shards: Iterable[ShardFile]) -> None:
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._marks: dict[str, str] = {}  # by path
        for shard in shards:
            self._marks[shard.path] = shard.mark
            if shard.mark:
                found[shard.mark].append((shard.start + shard.tokens, shard.start))
        # By mark: where stretches end, ascending, and the first token of all that end there or
        # behind.
        self._ends: dict[str, list[int]] = {}
        self._firsts: dict[str, list[int]] = {}
        for mark, stretches in found.items():
            stretches.sort()
            self._ends[mark] = [end for end, _ in stretches]
            starts = (start for _, start in reversed(stretches))
            self._firsts[mark] = list(accumulate(starts, min))[::-1]

    def has(self, shard: ShardFile) -> bool:
        """Whether some of it is known; by its path where it has no mark."""
        if shard.mark in self._ends:
            n = bisect_right(self._ends[shard.mark], shard.start)
            firsts = self._firsts[shard.mark]
            return n < len(firsts) and firsts[n] < shard.start + shard.tokens
        return shard.path in self._marks and not (shard.mark and self._marks[shard.path])


class CollectedStretches:
    """Stretches that are collected to be written."""

    def __init__(self) -> None:
        self._files: dict[File, int] = {}
        self._parts: list[npt.NDArray[Any]] = []
        self._count = 0
        self._numbers: dict[int, npt.NDArray[np.int64]] = {}  # by id of a store, of its files

    def add(self, shards: Sequence[ShardFile]) -> list[int]:
        """Take them; [first, count] of their places."""
        first, self._count = self._count, self._count + len(shards)
        self._parts.append(
            self._of_store(shards) if isinstance(shards, ShardStretches) else self._of(shards)
        )
        return [first, len(shards)]

    def write(self, folder: Path, stem: str) -> str:
        """Write the file to `folder`, and return its name."""
        files = sorted(self._files)  # so that those of a folder are neighbours
        rows = np.concatenate(self._parts)
        rank = np.empty(len(files), np.uint32)
        rank[[self._files[file] for file in files]] = np.arange(len(files))
        rows["file"] = rank[rows["file"]]
        paths = [os.fsencode(file.path) for file in files]
        ends = np.cumsum([len(path) for path in paths], dtype="<u8")
        parts = [
            _HEADER.pack(_MAGIC, self._count, len(files), sum(map(len, paths))),
            rows.tobytes(),
            np.array([file.tokens for file in files], "<u8").tobytes(),
            np.array([file.mark.encode() for file in files], _MARK).tobytes(),
            ends.tobytes(),
            *paths,
        ]
        digest = hashlib.blake2b(digest_size=8)
        for part in parts:
            digest.update(part)
        name = f"{stem}-{digest.hexdigest()}{SUFFIX}"
        if not (folder / name).exists():
            write_whole(folder / name, parts)
        return name

    def _of(self, shards: Sequence[ShardFile]) -> npt.NDArray[Any]:
        rows = [
            (self._number(File(s.path, s.mark, s.file_tokens)), s.start, s.tokens) for s in shards
        ]
        return np.array(rows, ROW)

    def _of_store(self, shards: ShardStretches) -> npt.NDArray[Any]:
        store, rows = shards.store, shards.rows.copy()
        numbers = self._numbers.setdefault(id(store), np.full(len(store.files), -1, np.int64))
        for n in np.unique(rows["file"][numbers[rows["file"]] < 0]).tolist():
            numbers[n] = self._number(store.files[n])
        rows["file"] = numbers[rows["file"]]
        return rows

    def _number(self, file: File) -> int:
        return self._files.setdefault(file, len(self._files))


def path_of(folder: Path, name: object) -> Path:
    """The path of the file that a manifest in `folder` names. ValueError where that is no name."""
    if not isinstance(name, str) or os.path.basename(name) != name or not name.endswith(SUFFIX):
        raise ValueError(f"{name!r:.60} is no name of a file of stretches beside it")
    return folder / name


def remove_others(folder: Path, stem: str, name: str) -> None:
    """Remove files of earlier manifests of this name, but those that another one still names."""
    found = folder.glob(f"{escape(stem)}-{'[0-9a-f]' * 16}{SUFFIX}")
    if others := [path for path in found if path.name != name]:
        named = {end for path in folder.glob("*.json") for end in _ENDS.findall(path.read_bytes())}
        for path in others:
            if _ENDS.findall(os.fsencode(path.name))[-1] not in named:
                path.unlink(missing_ok=True)
