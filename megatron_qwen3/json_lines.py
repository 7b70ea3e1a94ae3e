"""JSON lines as a command's result: to a file that is whole or not there, or to standard output.

with lines_to(out, is_first=launcher.rank() == 0) as write:
    write({"text": "…"})
"""

import codecs
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from megatron_qwen3.storage.whole import whole_file


@contextmanager
def lines_to(out: Path | None, is_first: bool) -> Iterator[Callable[[Any], None]]:
    """Writes one record a line, on the first rank alone. The file has its name at the end."""
    if not is_first:
        yield lambda _: None
    elif out is None:
        yield _writer(sys.stdout)
    else:
        with whole_file(out) as file:
            target = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
            yield _writer(target)
            target.detach()


def _writer(target: TextIO) -> Callable[[Any], None]:
    # Bytes that are not UTF-8 are not JSON, unless its characters are written as numbers.
    as_numbers = codecs.lookup(target.encoding).name != "utf-8"

    def write(record: Any) -> None:
        target.write(json.dumps(record, ensure_ascii=as_numbers) + "\n")
        target.flush()

    return write
