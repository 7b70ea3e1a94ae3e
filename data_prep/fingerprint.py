"""Computes marks of token files: the same contents have the same mark in any folder.

A source is known by its name and the marks of its shards, not by paths. A mark is a hash of a .bin
file's size and of four of its pages, evenly apart: it costs the same at any size, so that a run can
look at every file that it opens. A corpus that was tokenized anew in another order or by another
tokenizer differs in every page; a few tokens changed between the pages of a large file are not
found by it; `mq3 data inspect verify` reads all of the file and finds them.

A file from which documents were removed (`removal.py`) keeps its earlier mark, as long as it is
unchanged since the removal: so runs and curricula go on with it.

    mark("data/tokens/web")             # of data/tokens/web.bin: 16 hex digits
    marks(["data/tokens/web", …])       # of many, at once
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from data_prep.removed import Removed, at_end
from megatron_qwen3.config import ConfigError

_PAGES, _PAGE_BYTES = 4, 4096
_READERS = 16  # at once: on a cluster's file system a file takes a millisecond to answer


def mark(prefix: str | os.PathLike[str]) -> str:
    """The mark of PREFIX.bin. ConfigError where it cannot be read, or a removal has not ended."""
    prefix = os.fspath(prefix)
    found = mark_of_bytes(prefix)
    if (removed := _removed(prefix)) is None:
        return found
    if found != removed.mark:
        raise ConfigError(
            f"{prefix}.bin was changed after documents were removed from it: if the removal was "
            "interrupted, `mq3 data inspect remove` ends it; else give back the file"
        )
    return removed.first_mark


def first_mark(prefix: str | os.PathLike[str]) -> str:
    """The mark of PREFIX.bin as it was first written, also while documents are removed from it."""
    removed = _removed(os.fspath(prefix))
    return removed.first_mark if removed else mark_of_bytes(os.fspath(prefix))


def mark_of_bytes(prefix: str, ranges: Sequence[tuple[int, int, bytes]] = ()) -> str:
    """The mark of the bytes of PREFIX.bin; or of those after some of them (bytes [start, end), made
    a repetition of these)."""
    path = f"{prefix}.bin"
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=8)
            for place in _places(size):
                page = bytearray(os.pread(file.fileno(), _PAGE_BYTES, place))
                for start, end, filling in ranges:
                    _fill(page, start - place, end - place, filling)
                digest.update(page)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or 'cannot be read'}") from None
    return digest.hexdigest()


def _fill(page: bytearray, start: int, end: int, filling: bytes) -> None:
    """Bytes [start, end) of the page, as far as they lie in it, made `filling` again and again."""
    first, last = max(0, start), min(len(page), end)
    if first < last:
        repeated = filling * (-(-(last - first) // len(filling)) + 1)
        into = (first - start) % len(filling)
        page[first:last] = repeated[into : into + last - first]


def _removed(prefix: str) -> Removed | None:
    try:
        return at_end(f"{prefix}.idx")
    except OSError:  # readers of the text report it
        return None


def marks(prefixes: Sequence[str]) -> list[str]:
    """The mark of each, in their order."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(mark, prefixes))


def _places(size: int) -> Iterable[int]:
    """Where the pages begin: a file of less than four is read whole."""
    if size <= _PAGES * _PAGE_BYTES:
        return range(0, size, _PAGE_BYTES)
    return [n * (size - _PAGE_BYTES) // (_PAGES - 1) for n in range(_PAGES)]


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
