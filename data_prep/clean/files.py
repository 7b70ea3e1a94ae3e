"""Stores documents and numbers between stages: compressed JSONL and arrays, whole or absent.

    with new_documents(path) as writer:       # path appears when the block ends well
        writer.write(document)
    for document in read_documents(path): ...
    with new_rows(path, np.uint16, 120) as rows:
        rows.write(one)                       # an array that grows, at no memory
    array = load(path)                        # memory-mapped

A label whose name begins with `_` belongs to the stage that set it and is not written.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard
from datatrove.data import Document

from data_prep.damaged import DamagedFile
from data_prep.lines import blocks
from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.whole import whole_file

_LEVEL = 3
_BLOCK_BYTES = 1 << 20
_LONGEST_LINE = 1 << 40  # bytes: whatever a task wrote


class DocumentWriter:
    """Writes documents as compressed JSON lines, their labels beside `id` and `text`."""

    def __init__(self, file: IO[bytes]) -> None:
        compressor = zstandard.ZstdCompressor(_LEVEL)
        self._stream: Any = compressor.stream_writer(file, closefd=False)
        self._waiting = bytearray()

    def write(self, document: Document) -> None:
        row = {"id": document.id, "text": document.text, **labels_of(document)}
        self._waiting += msgspec.json.encode(row)
        self._waiting += b"\n"
        if len(self._waiting) >= _BLOCK_BYTES:
            self._flush()

    def finish(self) -> None:
        """Write the waiting lines, and the end of the compressed stream."""
        self._flush()
        self._stream.close()

    def _flush(self) -> None:
        self._stream.write(bytes(self._waiting))
        self._waiting.clear()


def labels_of(document: Document) -> dict[str, Any]:
    """Labels and fields as they are written."""
    return {k: v for k, v in document.metadata.items() if v is not None and k[:1] != "_"}


@contextmanager
def new_documents(path: Path) -> Iterator[DocumentWriter]:
    """A .jsonl.zst to write to, which becomes `path` when all went well, and else goes away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        writer = DocumentWriter(file)
        yield writer
        writer.finish()


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of a file that `new_documents` made. ConfigError where it is cut short."""
    try:
        for lines, _ in blocks(str(path), 0, path.stat().st_size, _LONGEST_LINE):
            for line in lines:
                row = msgspec.json.decode(line)
                yield Document(text=row.pop("text"), id=row.pop("id"), metadata=row)
    except (DamagedFile, msgspec.DecodeError):
        raise cut_short(path) from None


def read_json(path: Path) -> Any:
    """The JSON that a task left. ConfigError where it is cut short."""
    try:
        return msgspec.json.decode(path.read_bytes())
    except msgspec.DecodeError:
        raise cut_short(path) from None


def cut_short(path: str | Path) -> ConfigError:
    """The error of a file between stages that changed after its task: a disk's, or somebody's."""
    return ConfigError(
        f"{shown(path)} is cut short or damaged: remove logs and work of the cleaning that it "
        "belongs to, and start that anew by the same command"
    )


def save(path: Path, array: npt.NDArray[Any]) -> None:
    """An array, in numpy's format, that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = np.lib.format.header_data_from_array_1_0(np.ascontiguousarray(array))
    with whole_file(path) as file:  # not numpy.save, whose error on a full disk says nothing
        np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(array).tobytes())


class RowWriter:
    """Writes an array in numpy's format row by row."""

    def __init__(self, file: IO[bytes], dtype: npt.DTypeLike, width: int) -> None:
        self._file, self._dtype, self._width = file, np.dtype(dtype), width
        self._bytes = 0
        self._begin(0)

    def write(self, rows: Any) -> None:
        """Rows of the array's type, one after the other: an array, or bytes."""
        self._bytes += self._file.write(rows)

    def finish(self) -> None:
        """Say in front how many there are; numpy leaves room for it."""
        self._file.seek(0)
        self._begin(self._bytes // (self._dtype.itemsize * max(1, self._width)))

    def _begin(self, count: int) -> None:
        shape = (count, self._width) if self._width else (count,)
        kind = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": kind, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


@contextmanager
def new_rows(path: Path, dtype: npt.DTypeLike, width: int = 0) -> Iterator[RowWriter]:
    """An array [rows, width], or [rows], that becomes `path` when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        writer = RowWriter(file, dtype, width)
        yield writer
        writer.finish()


def load(path: Path) -> npt.NDArray[Any]:
    """An array that `save` wrote, memory-mapped. ConfigError where it is cut short."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except (ValueError, EOFError):
        raise cut_short(path) from None


def read_rows(file: IO[bytes], dtype: npt.DTypeLike, count: int) -> npt.NDArray[Any]:
    """So many rows from where the file stands. ConfigError where it has fewer."""
    rows = np.fromfile(file, dtype, count)
    if len(rows) < count:
        raise cut_short(file.name)
    return rows


def pieces_of(path: Path, rows: int) -> Iterator[npt.NDArray[Any]]:
    """An array that `save` or `new_rows` wrote, read from front to back, so many rows at a time."""
    whole = load(path)
    width = int(np.prod(whole.shape[1:], dtype=np.int64))
    offset = int(getattr(whole, "offset", 0))
    for at in range(0, len(whole), rows):
        count = min(rows, len(whole) - at)
        start = offset + at * width * whole.itemsize
        piece = np.fromfile(path, whole.dtype, count * width, offset=start)
        yield piece.reshape(count, *whole.shape[1:])
