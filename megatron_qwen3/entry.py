"""How every command of this project begins, so that no terminal, pipe or log file can end it.

    given = entry.parse(parser, arguments)      # where settings may stand after options
    if __name__ == "__main__":
        entry.run(main)                         # exits with the status that main returns

What a command prints is for people; what it does must not depend on whether they can read it. A
reader of a pipe may leave, a terminal close, a disk that holds the log be full, a stream be closed
from the start or of an encoding (ASCII, ISO-8859-1) that lacks a character. What cannot be written
is then dropped, or spelled as \\u2192, and the command goes on. Nothing here imports torch.
"""

import argparse
import contextlib
import io
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

_PATIENCE_SECONDS = 10.0  # for a reader that does not read, where the stream does not wait


def run(main: Callable[[], int]) -> NoReturn:
    """Call `main` with streams that hold, and exit with its status."""
    _open_closed_descriptors()
    sys.stdout = _steady(sys.stdout, 1)
    sys.stderr = _steady(sys.stderr, 2)
    sys.exit(main())


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was typed; `settings` may stand after options, too, where argparse does not take them.

    parse_intermixed_args does as much for parsers without commands of their own.
    """
    given, rest = parser.parse_known_args(arguments)
    unknown = rest if "settings" not in given else [word for word in rest if word.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        given.settings += rest
    return given


def _open_closed_descriptors() -> None:
    """Else the next file that is opened would be 1 or 2, and be written to by who prints."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number: this one


def _steady(stream: "io.TextIOWrapper | object | None", descriptor: int) -> io.TextIOWrapper:
    raw = _Steady(descriptor, "w", closefd=False)
    encoding, at_once, by_line = "utf-8", False, True
    if isinstance(stream, io.TextIOWrapper):
        encoding, by_line, at_once = stream.encoding, stream.line_buffering, stream.write_through
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return io.TextIOWrapper(
        raw if at_once else io.BufferedWriter(raw),  # as Python's own -u
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=by_line,
        write_through=at_once,
    )


class _Steady(io.FileIO):
    """A file descriptor; bytes that it does not take are gone."""

    def write(self, data: Any, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        with contextlib.suppress(OSError):
            while rest:
                written = super().write(rest)
                if written is not None:
                    rest = rest[written:]
                elif not select.select([], [self], [], _PATIENCE_SECONDS)[1]:
                    break
        return size
