"""Takes documents out of shards in place: nothing else moves, so that every run goes on.

    with removing(folder) as removal:
        removal.pending()                             # what was begun before and interrupted
        removal.take({"shards/00000/00000": [17]}, "asked for by the author")   # ends that first

A document's tokens are written over by `<|endoftext|>`; that they are removed stands at the end of
PREFIX.idx, so that nobody is trained on them (`removed.py`), and when and why in the shard's seal
(`seal.py`), whose checksums are renewed. Its provenance stays: so one can say later that it was
taken out. A file that is not what was written is left as it is: new checksums would hide that.

What is to be done stands in FOLDER/removing.json before anything is touched, with the checksums of
what it comes to, and goes away at the end: a removal that is killed goes on when the next one
begins. Meanwhile each shard is either as it was, or its document is not trained on any more, or it
is refused.
"""

import datetime
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from data_prep.fingerprint import file_sha256, mark_of_bytes
from data_prep.indexed import IndexedReader
from data_prep.inventory import read_inventory
from data_prep.json_files import read_json, write_json
from data_prep.removed import Removed
from data_prep.seal import read_seal, reseal
from data_prep.stretches import leaves
from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.inside import fault_of
from megatron_qwen3.storage.lock import owned
from megatron_qwen3.storage.whole import sync, write_whole

JOURNAL, LOCK = "removing.json", "removing.lock"
INTERRUPTED = "a removal of documents is at work or was interrupted: the next `remove` ends it"
_VERSION = 1
_BLOCK_TOKENS = 1 << 18  # that are written over at a time
_OTHERWISE = "it was removed just now"


class Asked(NamedTuple):
    """documents: their numbers, by the path of their shard; sha256: by path what .bin and .idx come
    to, {} in journals of earlier releases."""

    documents: Mapping[str, Sequence[int]]
    date: str
    reason: str
    sha256: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Removal:
    """Of a folder that nobody else removes from now. end_of_document: the id that takes the place
    of tokens."""

    folder: Path
    end_of_document: int

    @classmethod
    def of(cls, folder: Path) -> Self:
        """ConfigError where it is no folder of shards."""
        end_of_document = read_inventory(folder).tokenizer.get("end_of_document")
        if type(end_of_document) is not int:
            raise ConfigError(f"{folder}: its inventory names no end_of_document to write in place")
        return cls(Path(folder), end_of_document)

    def take(self, documents: Mapping[str, Sequence[int]], reason: str) -> int:
        """Take out documents, by the path of their shard; how many tokens they had.

        ConfigError where a shard is none, has no such document, or is not what was written.
        """
        self.end()
        rows = {path: sorted(set(map(int, numbers))) for path, numbers in documents.items()}
        self._check(rows)
        digests = {path: self._after(path, numbers) for path, numbers in rows.items()}
        today = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        asked = Asked(rows, today, reason, digests)
        write_json(self.folder / JOURNAL, {"version": _VERSION, **asked._asdict()})
        return self._go_on(asked)

    def pending(self) -> Mapping[str, Sequence[int]]:
        """The documents of a removal that was interrupted, by path; {} where there is none."""
        asked = self._asked()
        return asked.documents if asked else {}

    def end(self) -> None:
        """What was begun before and interrupted is done."""
        if asked := self._asked():
            self._go_on(asked)

    def _asked(self) -> Asked | None:
        """ConfigError where the journal is none, or a shard of it is missing."""
        path = self.folder / JOURNAL
        if not path.exists():
            return None
        try:
            asked = _asked_of(read_json(path, _OTHERWISE, _VERSION))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"{path} is no list of documents to remove ({fault_of(error)}); remove the file, "
                "and the documents again"
            ) from None
        try:
            self._check(asked.documents)
        except ConfigError as error:
            raise ConfigError(f"{path} names what is not there: {error}") from None
        return asked

    def _check(self, documents: Mapping[str, Sequence[int]]) -> None:
        for path, numbers in documents.items():
            count = IndexedReader(self._prefix(path)).num_documents
            if wrong := [n for n in numbers if not 0 <= n < count]:
                raise ConfigError(f"{path} has documents 0 to {count - 1}, not {wrong[0]}")

    def _prefix(self, path: str) -> Path:
        """Of a shard below the folder: what a file names elsewhere is never written to."""
        if leaves(path):
            raise ConfigError(
                f"{self.folder}: the shard {path!r} lies outside of it; nothing was done"
            )
        return self.folder / path

    def _after(self, path: str, numbers: Sequence[int]) -> dict[str, str]:
        """The checksums that a shard will have. ConfigError where it has others than its seal."""
        change = _Change.of(self._prefix(path), numbers, self.end_of_document)
        now, after = change.bin_sha256()
        found = {"bin": now, "idx": file_sha256(f"{change.prefix}.idx")}
        known = read_seal(change.prefix).sha256
        for name, digest in found.items():
            if digest != known[name]:
                raise ConfigError(
                    f"{change.prefix}.{name} is not what was written, its sha256 differs; nothing "
                    "was removed: give back the file, or tokenize again"
                )
        return {"bin": after, "idx": hashlib.sha256(change.new_idx).hexdigest()}

    def _go_on(self, asked: Asked) -> int:
        tokens = sum(self._of_shard(path, asked) for path in asked.documents)
        (self.folder / JOURNAL).unlink()
        sync(self.folder)
        return tokens

    def _of_shard(self, path: str, asked: Asked) -> int:
        """Each step may be done again: the index first, from which on nobody is trained on them."""
        numbers, expected = asked.documents[path], asked.sha256.get(path)
        change = _Change.of(self._prefix(path), numbers, self.end_of_document)
        digests = {"idx": hashlib.sha256(change.new_idx).hexdigest()}
        _check_digest(change, "idx", digests, expected)
        change.write()
        digests["bin"] = file_sha256(f"{change.prefix}.bin")
        _check_digest(change, "bin", digests, expected)
        seal = read_seal(change.prefix)
        about = {"date": asked.date, "reason": asked.reason}
        rows = {
            n: {"document": n, "tokens": list(tokens), **about}
            for n, tokens in zip(numbers, change.ranges, strict=True)
        }
        changed = seal._replace(sha256=seal.sha256 | digests, removed=rows | seal.removed)
        reseal(change.prefix, changed)
        return sum(last - first for first, last in change.ranges)


class _Change(NamedTuple):
    """What becomes of a shard. ranges: of the documents' tokens; removed: all that will be out of
    it; new_idx: what its .idx will be; filling: the token that takes their place."""

    prefix: Path
    ranges: list[tuple[int, int]]
    removed: Removed
    new_idx: bytes
    filling: npt.NDArray[Any]

    @classmethod
    def of(cls, prefix: Path, numbers: Sequence[int], end_of_document: int) -> Self:
        reader = IndexedReader(prefix)
        starts = reader.document_offsets
        ranges = [(int(starts[n]), int(starts[n + 1])) for n in numbers]
        filling = np.array([end_of_document], reader.tokens.dtype)
        removed = _removed(prefix, reader, ranges, filling)
        content = Path(f"{prefix}.idx").read_bytes()
        before = reader.removed.num_bytes if reader.removed else 0
        new_idx = content[: len(content) - before] + removed.as_bytes()
        return cls(prefix, ranges, removed, new_idx, filling)

    def bin_sha256(self) -> tuple[str, str]:
        """Of the .bin as it is, and as it will be."""
        now, after, first = hashlib.sha256(), hashlib.sha256(), 0
        with open(f"{self.prefix}.bin", "rb") as file:
            while block := file.read(_BLOCK_TOKENS * self.filling.itemsize):
                now.update(block)
                tokens = np.frombuffer(block, self.filling.dtype).copy()
                for a, b in self.removed.within(first, first + len(tokens)):
                    tokens[a - first : b - first] = self.filling
                after.update(tokens.tobytes())
                first += len(tokens)
        return now.hexdigest(), after.hexdigest()

    def write(self) -> None:
        index = Path(f"{self.prefix}.idx")
        if index.read_bytes() != self.new_idx:
            write_whole(index, [self.new_idx])
        _write_over(Path(f"{self.prefix}.bin"), self.ranges, self.filling.tobytes())


@contextmanager
def removing(folder: Path) -> Iterator[Removal]:
    """A folder of shards to take documents out of. ConfigError where it is none, or another process
    is at it."""
    removal = Removal.of(folder)
    with owned(removal.folder, LOCK, patience_seconds=0):
        yield removal


def is_interrupted(folder: Path) -> bool:
    """Whether a removal there has not ended, or is at work."""
    return (Path(folder) / JOURNAL).exists()


def removed_from(prefix: str | os.PathLike[str]) -> dict[int, dict[str, Any]]:
    """By document: when and why it was taken out of a shard."""
    return read_seal(prefix).removed


def _asked_of(content: Mapping[str, Any]) -> Asked:
    """One of KeyError, TypeError, ValueError, AttributeError where it is none."""
    documents = {path: list(numbers) for path, numbers in content["documents"].items()}
    if wrong := [n for some in documents.values() for n in some if type(n) is not int]:
        raise ValueError(f"{wrong[0]!r:.40} is no number of a document")
    if not (isinstance(content["date"], str) and isinstance(content["reason"], str)):
        raise ValueError("date and reason are no texts")
    sha256 = content.get("sha256", {})
    digests = {path: {name: sha256[path][name] for name in ("bin", "idx")} for path in sha256}
    return Asked(documents, content["date"], content["reason"], digests)


def _check_digest(
    change: _Change, name: str, digests: Mapping[str, str], expected: Mapping[str, str] | None
) -> None:
    if expected and digests[name] != expected[name]:
        raise ConfigError(
            f"{change.prefix}.{name} was damaged while documents were removed, its sha256 differs; "
            "give back the file as it was before or after: the next `remove` ends it"
        )


def _removed(
    prefix: Path,
    reader: IndexedReader,
    ranges: Sequence[tuple[int, int]],
    filling: npt.NDArray[Any],
) -> Removed:
    """Beside what is there the ranges, and the marks of what the .bin was and will be."""
    size, before = filling.itemsize, reader.removed
    known = before.ranges if before else np.zeros((0, 2), np.int64)
    all_ranges = _joined(np.concatenate([known, np.array(ranges, np.int64).reshape(-1, 2)]))
    if before and np.array_equal(all_ranges, known):
        return before
    filler = filling.tobytes()
    in_bytes = [(first * size, last * size, filler) for first, last in all_ranges.tolist()]
    first_mark = before.first_mark if before else mark_of_bytes(str(prefix))
    return Removed(first_mark, mark_of_bytes(str(prefix), in_bytes), all_ranges)


def _joined(ranges: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Ascending, each once, those that touch made one."""
    found: list[list[int]] = []
    for first, last in sorted(map(tuple, ranges.tolist())):
        if found and first <= found[-1][1]:
            found[-1][1] = max(found[-1][1], last)
        elif first < last:
            found.append([first, last])
    return np.array(found, np.int64).reshape(-1, 2)


def _write_over(path: Path, ranges: Sequence[tuple[int, int]], filling: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for first, last in ranges:
            for start in range(first, last, _BLOCK_TOKENS):
                block = memoryview(filling * (min(last, start + _BLOCK_TOKENS) - start))
                at = start * len(filling)
                while block:
                    done = os.pwrite(descriptor, block, at)
                    block, at = block[done:], at + done
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
