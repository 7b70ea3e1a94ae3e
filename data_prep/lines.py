"""Reads lines of a file or of a part of it, here or elsewhere (`remote.py`), plain or compressed,
at constant memory.

    for lines, progress in blocks("a.jsonl.gz", 0, size, longest_line=1 << 26):
        ...                          # some MB of lines without their newlines; share that is read

A line belongs to the part in which it begins, so parts that cover a file give each line once.

A few compressed bytes that expand to many are handed on in pieces: memory is a few blocks and, of
zstd, the window that a file was compressed with (`zstd --long=31`: 2 GiB).
"""

import os
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from data_prep.damaged import DamagedFile
from data_prep.remote import opened
from megatron_qwen3.config import ConfigError

BLOCK_BYTES = 1 << 22
WINDOW_BYTES = 1 << 31  # the most that zstd itself makes
_COMPRESSED_BYTES = 1 << 16
_ZSTD_BLOCK_BYTES = 1 << 17  # the most that one of its blocks becomes
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def blocks(
    path: str, start: int, end: int, longest_line: int
) -> Iterator[tuple[list[bytes], float]]:
    """(lines, share of the part that is read so far), some MB at a time.

    Of a line longer than `longest_line` bytes only that many and one are given.
    """
    with opened(path) as file:
        pieces = _pieces(file, path, start, end, longest_line)
        is_first = not start
        for lines in _lines(pieces, longest_line):
            if lines and is_first:  # of a compressed file; _part passes over it in a plain one
                lines[0], is_first = lines[0].removeprefix(_BYTE_ORDER_MARK), False
            yield lines, min(1.0, (file.tell() - start) / max(1, end - start))


def _lines(pieces: Iterator[bytes], longest_line: int) -> Iterator[list[bytes]]:
    """Pieces of any length -> lists of whole lines. An error comes after the lines before it."""
    waiting: list[bytes] = []
    size = fresh = 0  # bytes that wait, and how many of them came since the last list
    is_cut, damage = False, None
    try:
        for piece in pieces:
            if is_cut:  # drop the rest of this line
                _, newline, piece = piece.partition(b"\n")
                is_cut = not newline
            waiting.append(piece)
            size, fresh = size + len(piece), fresh + len(piece)
            if fresh >= BLOCK_BYTES or size > longest_line:
                *lines, rest = b"".join(waiting).split(b"\n")
                if len(rest) > longest_line:
                    lines, rest, is_cut = [*lines, rest[: longest_line + 1]], b"", True
                yield lines
                waiting, size, fresh = [rest], len(rest), 0
    except DamagedFile as error:
        damage = error
    *lines, rest = b"".join(waiting).split(b"\n")
    yield [*lines, rest] if rest and not damage else lines
    if damage:
        raise damage


def _pieces(file: BinaryIO, path: str, start: int, end: int, longest_line: int) -> Iterator[bytes]:
    if path.endswith(".gz"):
        yield from _gunzipped(file)
    elif path.endswith(".zst"):
        yield from _unzstd(file)
    else:
        yield from _part(file, start, end, longest_line)


def _part(file: BinaryIO, start: int, end: int, longest_line: int) -> Iterator[bytes]:
    """From the first line that begins at `start` or later to that which goes past `end`."""
    file.seek(_first_line(file, start))
    piece = b""
    while left := max(0, end - file.tell()):
        piece = file.read(min(left, BLOCK_BYTES))
        if not piece:  # the file was longer when the work was planned
            raise DamagedFile(f"ends at {file.tell():,} bytes, not at {end:,}")
        yield piece
    if piece and not piece.endswith(b"\n"):
        yield file.readline(longest_line + 1)


def first_line(path: str, start: int) -> int:
    """The byte at which the first line of this part of a plain file begins."""
    with opened(path) as file:
        return _first_line(file, start)


def _first_line(file: BinaryIO, start: int) -> int:
    if not start:
        mark = file.read(len(_BYTE_ORDER_MARK))
        return len(mark) if mark == _BYTE_ORDER_MARK else 0
    file.seek(start - 1)
    _skip_line(file)
    return file.tell()


def _skip_line(file: BinaryIO) -> None:
    while piece := file.readline(BLOCK_BYTES):
        if piece.endswith(b"\n"):
            return


def _gunzipped(file: BinaryIO) -> Iterator[bytes]:
    """A stream of one or several members, end to end, as `cat a.gz b.gz` makes them."""
    decompressor = zlib.decompressobj(wbits=31)
    try:
        while compressed := file.read(_COMPRESSED_BYTES):
            while compressed:
                if decompressor.eof:
                    decompressor = zlib.decompressobj(wbits=31)
                yield decompressor.decompress(compressed, BLOCK_BYTES)
                compressed = decompressor.unused_data or decompressor.unconsumed_tail
        while not decompressor.eof and (rest := decompressor.decompress(b"", BLOCK_BYTES)):
            yield rest
    except zlib.error as error:
        raise DamagedFile(str(error)) from None
    if not decompressor.eof:
        raise DamagedFile("the compressed stream is cut short")


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    """A stream of one or several frames; skippable ones are passed over."""
    zstandard = _import_zstandard()
    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
    frames = 0
    try:
        while magic := file.read(4):
            number = int.from_bytes(magic, "little")
            if number & ~0xF == 0x184D2A50:
                file.seek(int.from_bytes(_exactly(file, 4), "little"), os.SEEK_CUR)
                continue
            decompress = decompressor.decompressobj().decompress
            yield from map(decompress, _frame(file, magic))
            frames += 1
    except zstandard.ZstdError as error:
        raise DamagedFile(str(error)) from None
    if not frames:
        raise DamagedFile("the compressed stream is cut short")


def _frame(file: BinaryIO, magic: bytes) -> Iterator[bytes]:
    """A frame's bytes in pieces that become at most BLOCK_BYTES each: some whole blocks (RFC 8878,
    section 3.1.1). Four bytes may stand for 128 KiB, so their number tells nothing of memory."""
    if magic != b"\x28\xb5\x2f\xfd":
        raise DamagedFile("it is not compressed by zstd")
    descriptor = _exactly(file, 1)
    flags = descriptor[0]
    is_single, size_flag = bool(flags & 0x20), flags >> 6
    size = (not is_single) + (0, 1, 2, 4)[flags & 3] + (int(is_single), 2, 4, 8)[size_flag]
    waiting, blocks, is_last = [magic, descriptor, _exactly(file, size)], 0, False
    try:
        while not is_last:
            head = _exactly(file, 3)
            number = int.from_bytes(head, "little")
            is_last, is_repeated, size = bool(number & 1), number >> 1 & 3 == 1, number >> 3
            waiting += (head, _exactly(file, 1 if is_repeated else size))
            blocks += 1
            if blocks * _ZSTD_BLOCK_BYTES >= BLOCK_BYTES and not is_last:
                yield b"".join(waiting)
                waiting, blocks = [], 0
        if flags & 4:
            waiting.append(_exactly(file, 4))
    except DamagedFile:
        yield b"".join(waiting)
        raise
    yield b"".join(waiting)


def _exactly(file: BinaryIO, size: int) -> bytes:
    found = file.read(size)
    if len(found) < size:
        raise DamagedFile("the compressed stream is cut short")
    return found


def _import_zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ConfigError(
            "reading .zst needs zstandard, which is not installed: "
            "pip install 'megatron_qwen3[data]'"
        ) from None
    return zstandard


def lines_before(path: str, start: int) -> int:
    """How many lines of a plain file come before the part that starts at this byte."""
    if not start:
        return 0
    with opened(path) as file:
        sizes = (min(BLOCK_BYTES, start - 1 - at) for at in range(0, start - 1, BLOCK_BYTES))
        return 1 + sum(file.read(size).count(b"\n") for size in sizes)
