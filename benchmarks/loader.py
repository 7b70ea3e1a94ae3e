"""Two readers of a run's batches, side by side: a thread of the rank, and DALI (data.loader).

    python benchmarks/loader.py [--length 4096] [--rows 8] [--step-ms 200] [--device cuda]

Both read the same packed documents, kept apart, in turns within one run; tables give medians over
the turns, and of the ratio within each turn. Without a step between batches it is how fast each can
read at most. With a step that leaves the processor alone, as one on a GPU does, it is how long the
rank waits for its next batch, and the processor's time (that of children too) for a batch. The
input lies in the page cache.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from data_prep.indexed import IndexedWriter
from megatron_qwen3.cli.parser import Parser, number, positive
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.pretrain.record import Feed, RunPart, Start
from megatron_qwen3.pretrain.rows import StepRows
from megatron_qwen3.pretrain.sources import simple_sources
from megatron_qwen3.settings import DataConfig, SourceConfig
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.dali import DaliReader
from megatron_qwen3.training.reader import BatchReader

TOKENS = 1 << 24  # of each of SOURCES, int32: together 128 MiB
SOURCES, DOCUMENT_TOKENS = 2, 1_024
WARM_STEPS = 4
STEPS = 1 << 30


def rows_of(folder: Path, length: int, rows: int) -> StepRows:
    """Rows of made-up documents."""
    random, sources = np.random.default_rng(0), []
    for name in "ab"[:SOURCES]:
        with IndexedWriter(folder / name, np.int32) as writer:
            for _ in range(TOKENS // DOCUMENT_TOKENS):
                writer.add_document(random.integers(0, 150_000, DOCUMENT_TOKENS, np.int32))
        sources.append(SourceConfig(name, str(folder / name)))
    data = DataConfig(sequence_length=length, sources=tuple(sources))
    feeds = tuple(Feed(source, share, Start(1)) for source, share in simple_sources(data))
    return StepRows(Mixture(RunPart(0, rows, length, None, feeds)), range(rows), True)


class Side:
    """One of both readers, which goes on where its last turn ended."""

    def __init__(self, reader: Any, device: torch.device) -> None:
        self.reader, self.device, self.step = reader, device, 0
        self.turn(WARM_STEPS, 0.0)

    def turn(self, count: int, step_seconds: float) -> tuple[float, float]:
        """Seconds that the rank waited, and of a processor's time, per batch."""
        waited, before = 0.0, processor_seconds()
        for _ in range(count):
            began = time.perf_counter()
            batch: TokenBatch = self.reader.batch(self.step, self.step + 1).to(self.device)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            waited += time.perf_counter() - began
            assert batch.tokens_BS.device.type == self.device.type
            self.step += 1
            time.sleep(step_seconds)
        return waited / count, (processor_seconds() - before) / count


def processor_seconds() -> float:
    ours = psutil.Process()
    times = [process.cpu_times() for process in (ours, *ours.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def compared(sides: dict[str, Side], turns: int, count: int, step_seconds: float) -> None:
    """Both sides in turns; prints medians."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            found[name].append(side.turn(count, step_seconds))
    print(
        f"\na step of {step_seconds * 1e3:g} ms after each batch" if step_seconds else "\nno step"
    )
    for k, what in enumerate(("waited", "processor")):
        thread, dali = ([turn[k] for turn in found[name]] for name in ("thread", "dali"))
        ratios = [b / a for a, b in zip(thread, dali, strict=True)]
        medians = [statistics.median(x) * 1e3 for x in (thread, dali)]
        print(
            f"  {what:9} per batch: thread {medians[0]:8.3f} ms, dali {medians[1]:8.3f} ms, "
            f"dali / thread {statistics.median(ratios):.2f}, "
            f"from {min(ratios):.2f} to {max(ratios):.2f}"
        )


def main() -> int:
    """The exit status."""
    parser = Parser(description=__doc__)
    parser.add_argument("--length", type=positive, default=4096, help="tokens of a row")
    parser.add_argument("--rows", type=positive, default=8, help="rows of a rank's batch")
    parser.add_argument(
        "--step-ms", type=_milliseconds, default=200.0, help="of the step between batches"
    )
    parser.add_argument("--turns", type=positive, default=7)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: cuda, but torch sees no GPU; valid here: cpu")
    # A reader has its GPU by its number.
    device = torch.device(given.device, 0) if given.device == "cuda" else torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        read = rows_of(Path(folder), given.length, given.rows)
        as_batch = lambda step: TokenBatch.of_arrays(read(step))  # noqa: E731
        with (
            BatchReader(as_batch, STEPS, device) as thread,
            DaliReader(read, STEPS, device) as dali,
        ):
            sides = {"thread": Side(thread, device), "dali": Side(dali, device)}
            print(f"{given.rows} rows of {given.length:,} tokens, device {given.device}")
            compared(sides, given.turns, 100, 0.0)
            compared(sides, given.turns, 10, given.step_ms / 1e3)
    return 0


def _milliseconds(text: str) -> float:
    if not 0 <= (value := number(text)) < 60_000:
        raise argparse.ArgumentTypeError(f"{text}; valid: 0 to 60000")
    return value


if __name__ == "__main__":
    sys.exit(main())
