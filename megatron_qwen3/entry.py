"""Begins every command of this project so that no terminal, pipe or log file can end it.

    given = entry.parse(parser, arguments)      # where settings may stand after options
    if __name__ == "__main__":
        entry.run(main)                         # exits with the status that main returns

A command prints for people; its work must not depend on whether they can read it. A reader of a
pipe may leave, a terminal close, a disk that holds the log be full, a stream be closed from the
start or of an encoding (ASCII, ISO-8859-1) that lacks a character. Text that cannot be written is
then dropped, or spelled as \\u2192, and the command goes on. Where standard output is the command's
result, and no log, a full disk below it is status 1 in the end. Ranks share one standard error: a
line reaches it whole, by one write. Nothing here imports torch.
"""

import argparse
import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from megatron_qwen3 import launcher
from megatron_qwen3.shown import shown

_READER_LEFT = (errno.EPIPE, errno.EIO)  # of a pipe, of a terminal
_PATIENCE_SECONDS = 10.0  # for a reader that does not read, where the stream does not wait


def run(main: Callable[[], int], prints_results: bool = False) -> NoReturn:
    """Call `main` with streams that hold, and exit with its status.

    Ctrl-C that `main` does not handle is one line and status 130. A `main` that `prints_results`
    has status 1 if some of them are lost, unless their reader chose to leave.
    """
    _open_closed_descriptors()
    output = _Steady(1, "w", closefd=False)
    sys.stdout = _steady(sys.stdout, output)
    sys.stderr = _steady(sys.stderr, _Steady(2, "w", closefd=False))
    try:
        status = main()
    except KeyboardInterrupt:  # Ctrl-C, also while imports take their seconds
        launcher.tell("stopped")  # once for all ranks of a machine
        status = 130  # as shells count it
    sys.stdout.flush()
    if prints_results and output.lost and not status:
        print(shown(f"error: standard output: {output.lost}"), file=sys.stderr)
        status = 1
    sys.exit(status)


class TypedSetting(str):
    """A key=value that stands among the words of an option of several (cli/parser.py)."""


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed arguments; `settings` may stand after options, too, where argparse takes none."""
    given, rest = parser.parse_known_args(arguments)
    unknown = rest if "settings" not in given else [word for word in rest if word.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    for values in [value for value in vars(given).values() if isinstance(value, list)]:
        rest += [value for value in values if isinstance(value, TypedSetting)]
        values[:] = [value for value in values if not isinstance(value, TypedSetting)]
    if rest:
        given.settings += rest
    return given


def _open_closed_descriptors() -> None:
    """Open 0, 1 and 2 on /dev/null where they are closed: the next file opened would be one of them
    and receive what others print."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number: this one


def _steady(stream: "io.TextIOWrapper | object | None", raw: "_Steady") -> io.TextIOWrapper:
    encoding, by_line = "utf-8", True
    if isinstance(stream, io.TextIOWrapper):
        # python -u, as torchrun starts ranks, would write a line and its end apart.
        encoding, by_line = stream.encoding, stream.line_buffering or stream.write_through
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=by_line,
    )


class _Steady(io.FileIO):
    """A file descriptor that drops the bytes it cannot write. lost: the cause, in one line."""

    lost = ""

    def write(self, data: Any, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                written = super().write(rest)
                if written is not None:
                    rest = rest[written:]
                elif not select.select([], [self], [], _PATIENCE_SECONDS)[1]:
                    self.lost = self.lost or "its reader does not read"
                    break
        except OSError as error:
            if error.errno not in _READER_LEFT:
                self.lost = self.lost or error.strerror or str(error)
        return size
