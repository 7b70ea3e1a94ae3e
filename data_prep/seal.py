"""The seal of a shard: that it is whole, its cells, checksums, and what was taken out of it since.

It is the end of PREFIX.docs, which is written last: so a shard has one file beside Megatron's two.
Shards of earlier releases have theirs in PREFIX.json and keep it there.

    write_sealed(prefix, cells, provenance)     # when PREFIX.bin and PREFIX.idx are whole
    is_sealed(prefix)
    seal = read_seal(prefix); seal.cells; seal.sha256["bin"]; seal.removed[17]["reason"]
    reseal(prefix, seal)                        # after documents were taken out

Behind the provenance (`shards.py`) stand JSON, its length in bytes (u64, little-endian) and a magic
of 8 bytes that no provenance holds: neither UTF-8 nor the border of a note has its first.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from data_prep.cells import Cell
from data_prep.fingerprint import file_sha256
from data_prep.json_files import VERSION, json_bytes, read_json, write_json
from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.whole import write_whole

FILES = ("bin", "idx", "docs")
_END = struct.Struct("<Q8s")
_MAGIC = b"\xfeQWSEAL\xfe"
_BLOCK_BYTES = 1 << 20
_NOT_WHOLE = "the shard is not whole, or no shard"
_FAULTS = (KeyError, TypeError, ValueError, AttributeError, RecursionError)

Buffer = bytes | bytearray | memoryview


class ShardSeal(NamedTuple):
    """sha256: by suffix, `docs` of the provenance alone; removed: by document, the range of its
    tokens, date and reason."""

    cells: tuple[Cell, ...]
    sha256: dict[str, str]
    removed: dict[int, dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """One cell has its row to itself, as all shards had it that knew one combination of
        labels."""
        rows = [cell.as_json() for cell in self.cells]
        about = {"version": VERSION, **(rows[0] if len(rows) == 1 else {"cells": rows})}
        removed = [self.removed[n] for n in sorted(self.removed)]
        return about | {"sha256": self.sha256} | ({"removed": removed} if removed else {})

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """One of _FAULTS where it is none."""
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']!r:.40}; known: {VERSION}")
        digests = {name: content["sha256"][name] for name in FILES}
        if wrong := [name for name, value in digests.items() if not isinstance(value, str)]:
            raise ValueError(f"the sha256 of {wrong[0]} is no text")
        removed = {_number(row): row for row in content.get("removed", [])}
        if not (rows := content.get("cells", [content])):
            raise ValueError("it has no cells")
        return cls(tuple(map(Cell.from_json, rows)), digests, removed)


def is_sealed(prefix: str | os.PathLike[str]) -> bool:
    """Whether a shard was written to its end."""
    return _json(prefix).exists() or _place(prefix) is not None


def read_seal(prefix: str | os.PathLike[str]) -> ShardSeal:
    """ConfigError where the shard is not whole, or its seal damaged; OSError."""
    place, path = _place(prefix), _docs(prefix)
    try:
        if place is not None:
            with path.open("rb") as file:
                file.seek(place.start)
                return ShardSeal.from_json(json.loads(file.read(len(place))))
        if (path := _json(prefix)).exists():
            return ShardSeal.from_json(read_json(path, _NOT_WHOLE))
    except _FAULTS as error:
        if isinstance(error, ConfigError):
            raise
        told = error if type(error) is ValueError else repr(error)
        raise ConfigError(f"{path}: the seal of the shard is damaged ({told})") from None
    path = _docs(prefix)
    raise ConfigError(
        f"{path} {'has no seal' if path.exists() else 'does not exist'}: {_NOT_WHOLE}"
    )


def unseal(prefix: str | os.PathLike[str]) -> None:
    """The shard is written anew: what is there is not whole any more."""
    for path in (_json(prefix), _docs(prefix)):
        path.unlink(missing_ok=True)


def write_sealed(
    prefix: str | os.PathLike[str], cells: tuple[Cell, ...], provenance: Iterable[Buffer]
) -> None:
    """Write PREFIX.docs of a shard whose .bin and .idx are whole."""
    digests = {name: file_sha256(f"{os.fspath(prefix)}.{name}") for name in ("bin", "idx")}
    write_whole(_docs(prefix), _sealed(provenance, ShardSeal(cells, digests, {})))


def reseal(prefix: str | os.PathLike[str], seal: ShardSeal) -> None:
    """Put another seal on a shard, where it has its own; the provenance stays."""
    if _place(prefix) is None:
        write_json(_json(prefix), seal.as_json())
    else:
        write_whole(_docs(prefix), _sealed(_provenance(prefix), seal))


def provenance_sha256(prefix: str | os.PathLike[str]) -> str:
    """Of PREFIX.docs without the seal."""
    digest = hashlib.sha256()
    for block in _provenance(prefix):
        digest.update(block)
    return digest.hexdigest()


def _sealed(provenance: Iterable[Buffer], seal: ShardSeal) -> Iterator[Buffer]:
    digest = hashlib.sha256()
    for part in provenance:
        digest.update(part)
        yield part
    # A sum that is known stays: what was damaged since is not made right by another seal.
    digests = {"docs": digest.hexdigest()} | seal.sha256
    content = json_bytes(seal._replace(sha256=digests).as_json())
    yield content
    yield _END.pack(len(content), _MAGIC)


def _provenance(prefix: str | os.PathLike[str]) -> Iterator[bytes]:
    place, path = _place(prefix), _docs(prefix)
    left = path.stat().st_size if place is None else place.start
    with path.open("rb") as file:
        while block := file.read(min(left, _BLOCK_BYTES)):
            left -= len(block)
            yield block


def _place(prefix: str | os.PathLike[str]) -> range | None:
    """The bytes of PREFIX.docs that are its seal; None where it has none, or is not there."""
    path = _docs(prefix)
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END.size))
            end = file.read()
    except FileNotFoundError:
        return None
    if len(end) < _END.size or not end.endswith(_MAGIC):
        return None
    last = size - _END.size
    length, _ = _END.unpack(end)
    if length > last:
        raise ConfigError(f"{path}: the seal of the shard is damaged (longer than the file)")
    return range(last - length, last)


def _number(row: dict[str, Any]) -> int:
    """The document of a row of what was taken out. ValueError where it is none."""
    number: int = row["document"]
    if type(number) is not int or not all(isinstance(row[k], str) for k in ("date", "reason")):
        raise ValueError(f"{row!r:.80} is no document that was taken out")
    return number


def _docs(prefix: str | os.PathLike[str]) -> Path:
    return Path(f"{os.fspath(prefix)}.docs")


def _json(prefix: str | os.PathLike[str]) -> Path:
    return Path(f"{os.fspath(prefix)}.json")
