"""Appends lines to a file, even where its disk is full for a while.

    rows = RowFile(path, tell)             # tell(text): logs a line
    rows.write('{"step": 1}')              # appended, or kept for the next try
    rows.sync()                            # flushes written lines to disk
    rows.close()

A log must not end its run. A failure is reported once, the lines are kept in memory and tried again
with every new line; a line is in the file whole or not at all.
"""

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from megatron_qwen3.storage.whole import sync

_MOST_KEPT_BYTES = 64 << 20  # lines of days; beyond that the oldest are lost


class RowFile:
    """A file of lines. OSError, on opening, where it cannot be written."""

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self.path, self.tell = path, tell
        self._file = path.open("ab", buffering=0)
        self._kept: deque[bytes] = deque()
        self._kept_bytes = self._lost = 0
        self._fails = False
        sync(path.parent)  # its name

    def write(self, line: str) -> None:
        """Append a line, given without its newline."""
        self._kept.append(f"{line}\n".encode())
        self._kept_bytes += len(self._kept[-1])
        while self._kept_bytes > _MOST_KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft())
            self._lost += 1
        self._try_all()

    def sync(self) -> None:
        """Flush the file's lines to disk, if possible; from any thread."""
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._try_all()
        if lost := self._lost + len(self._kept):
            self.tell(f"{self.path}: {lost:,} rows are lost, they could not be written")
        self._file.close()

    def _try_all(self) -> None:
        try:
            while self._kept:
                self._append(self._kept[0])
                self._kept_bytes -= len(self._kept.popleft())
        except OSError as error:
            if not self._fails:
                self.tell(
                    f"{self.path} cannot be written ({error.strerror}): its rows are kept in "
                    "memory and tried again; the run goes on"
                )
            self._fails = True
        else:
            if self._fails:
                self.tell(f"{self.path} is written again")
            self._fails = False

    def _append(self, data: bytes) -> None:
        """Append bytes whole. OSError where they do not fit; then none of them is in the file."""
        end = os.fstat(self._file.fileno()).st_size
        if self._file.write(data) != len(data):
            os.ftruncate(self._file.fileno(), end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
