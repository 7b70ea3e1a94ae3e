"""Takes documents out of shards in place: nothing else moves, so that every run goes on.

    with removing(folder) as removal:                 # ends first what was interrupted before
        removal.take({"shards/00000/00000": [17]}, "asked for by the author")

A document's tokens are written over by `<|endoftext|>`; that they are removed stands at the end of
PREFIX.idx, so that nobody is trained on them (`removed.py`), and when and why in PREFIX.json, whose
checksums are renewed. Its provenance stays: so one can say later that it was taken out.

What is to be done stands in FOLDER/removing.json before anything is touched, and goes away at the
end: a removal that is killed goes on when the next one begins. Meanwhile each shard is either as it
was, or its document is not trained on any more, or it is refused.
"""

import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.fingerprint import file_sha256, mark_of_bytes
from data_prep.indexed import IndexedReader
from data_prep.inventory import read_inventory
from data_prep.json_files import read_json, write_json
from data_prep.removed import Removed
from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.lock import owned
from megatron_qwen3.storage.whole import sync, write_whole

JOURNAL, LOCK = "removing.json", "removing.lock"
_VERSION = 1
_BLOCK_TOKENS = 1 << 18  # that are written over at a time
_OTHERWISE = "it was removed just now"


@dataclass(frozen=True)
class Removal:
    """Of a folder that nobody else removes from now. end_of_document: the id that takes the place
    of tokens."""

    folder: Path
    end_of_document: int

    def take(self, documents: Mapping[str, Sequence[int]], reason: str) -> int:
        """Take out documents, by the path of their shard; how many tokens they had.

        ConfigError where a shard is none, or has no such document.
        """
        for path, numbers in documents.items():
            count = IndexedReader(self._prefix(path)).num_documents
            if wrong := [n for n in numbers if not 0 <= n < count]:
                raise ConfigError(f"{path} has documents 0 to {count - 1}, not {wrong[0]}")
        today = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        rows = {path: sorted(set(map(int, numbers))) for path, numbers in documents.items()}
        asked = {"version": _VERSION, "date": today, "reason": reason, "documents": rows}
        write_json(self.folder / JOURNAL, asked)
        return self._go_on(asked)

    def _prefix(self, path: str) -> Path:
        """Of a shard below the folder: what a file names elsewhere is never written to."""
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ConfigError(
                f"{self.folder}: the shard {path!r} lies outside of it; nothing was done"
            )
        return self.folder / path

    def end(self) -> None:
        """What was begun before and interrupted is done."""
        path = self.folder / JOURNAL
        if path.exists():
            try:
                self._go_on(read_json(path, _OTHERWISE, _VERSION))
            except (KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"{path} is no list of what is to be removed ({error!r}); remove the file, and "
                    "the documents again"
                ) from None

    def _go_on(self, asked: dict[str, Any]) -> int:
        tokens = 0
        for path, numbers in asked["documents"].items():
            tokens += self._of_shard(path, numbers, asked["date"], asked["reason"])
        (self.folder / JOURNAL).unlink()
        sync(self.folder)
        return tokens

    def _of_shard(self, path: str, numbers: Sequence[int], date: str, reason: str) -> int:
        """Each step may be done again: the index first, from which on nobody is trained on them."""
        prefix = self._prefix(path)
        reader = IndexedReader(prefix)
        starts = reader.document_offsets
        ranges = [(int(starts[n]), int(starts[n + 1])) for n in numbers]
        filling = np.array([self.end_of_document], reader.tokens.dtype).tobytes()
        _write_index(prefix, reader, ranges, filling)
        _write_over(Path(f"{prefix}.bin"), ranges, filling)
        mark = Path(f"{prefix}.json")
        content = read_json(mark, "the shard is not whole, or no shard")
        digests = {name: file_sha256(f"{prefix}.{name}") for name in ("bin", "idx")}
        rows = {row["document"]: row for row in content.get("removed", [])}
        for n, (first, last) in zip(numbers, ranges, strict=True):
            own = {"document": n, "tokens": [first, last], "date": date, "reason": reason}
            rows.setdefault(n, own)
        listed = [rows[n] for n in sorted(rows)]
        digests = content["sha256"] | digests
        write_json(mark, content | {"sha256": digests, "removed": listed})
        return sum(last - first for first, last in ranges)


@contextmanager
def removing(folder: Path) -> Iterator[Removal]:
    """A folder of shards to take documents out of. ConfigError where it is none, or another process
    is at it."""
    inventory = read_inventory(folder)
    end_of_document = inventory.tokenizer["end_of_document"]
    if not isinstance(end_of_document, int):
        raise ConfigError(f"{folder}: its inventory names no end_of_document to write in place")
    with owned(Path(folder), LOCK, patience_seconds=0):
        removal = Removal(Path(folder), end_of_document)
        removal.end()
        yield removal


def is_interrupted(folder: Path) -> bool:
    """Whether a removal there has not ended, or is at work."""
    return (Path(folder) / JOURNAL).exists()


def removed_from(prefix: str | os.PathLike[str]) -> dict[int, dict[str, Any]]:
    """By document: when and why it was taken out of a shard."""
    mark = read_json(Path(f"{os.fspath(prefix)}.json"), "the shard is not whole, or no shard")
    return {row["document"]: row for row in mark.get("removed", [])}


def _write_index(
    prefix: Path, reader: IndexedReader, ranges: Sequence[tuple[int, int]], filling: bytes
) -> None:
    """Beside what is there the ranges, and the marks of what the .bin was and will be."""
    size, before = len(filling), reader.removed
    known = before.ranges if before else np.zeros((0, 2), np.int64)
    all_ranges = _joined(np.concatenate([known, np.array(ranges, np.int64).reshape(-1, 2)]))
    if before and np.array_equal(all_ranges, known):
        return
    in_bytes = [(first * size, last * size, filling) for first, last in all_ranges.tolist()]
    first_mark = before.first_mark if before else mark_of_bytes(str(prefix))
    index = Path(f"{prefix}.idx")
    content = index.read_bytes()
    content = content[: len(content) - (before.num_bytes if before else 0)]
    removed = Removed(first_mark, mark_of_bytes(str(prefix), in_bytes), all_ranges)
    write_whole(index, [content, removed.as_bytes()])


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
