"""Reads the rows of metrics.jsonl: `for row in read_rows(path)`.

`metrics.py`, which writes them, describes the rows. Nothing here imports torch.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_qwen3.settings import ConfigError
from megatron_qwen3.storage.inside import parse_json

FILE_NAME = "metrics.jsonl"
ALL_SOURCES = "all"  # the source of an evaluation row over all sources together


class MetricsError(ConfigError):
    """Metrics that are missing or cannot be read; the text names the file or folder."""


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a metrics file, without an incomplete last line.

    A run killed while writing leaves such a line. MetricsError: another line is no row.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                row = parse_json(line)
                row["kind"], row["step"]
            except (ValueError, TypeError, KeyError):
                if next(file, None) is None:
                    return
                raise MetricsError(f"{path}, line {number}: not a row of metrics") from None
            yield row
