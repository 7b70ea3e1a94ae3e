"""Reads bytes at a place of a file: `read_exactly(path, start, out)`."""

import os
from pathlib import Path

import numpy as np

from megatron_qwen3.settings import ConfigError
from megatron_qwen3.shown import shown


def read_exactly(path: Path, start: int, out: np.ndarray) -> None:
    """Fill `out`, contiguous bytes, from byte `start` of a file. ConfigError where it ends."""
    view = memoryview(out).cast("B")
    with path.open("rb", buffering=0) as file:
        while view:
            got = os.preadv(file.fileno(), [view], start)
            if not got:
                raise ConfigError(f"{shown(path)}: truncated, it ends at byte {start}")
            view, start = view[got:], start + got
