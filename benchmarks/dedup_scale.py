"""Near-duplicates at scale: bytes that each stage reads, writes and holds, for each document.

    python benchmarks/dedup_scale.py --millions 1 4 16 --folder /scratch/dedup

Signatures, digests and names are made up, not read off texts: measuring begins after the first
stage, whose speed `benchmarks/dedup.py` tells. Of the documents one in ten is an exact copy
of an earlier one anywhere, three in twenty are like an earlier one at 0.9. The stages themselves
run, task after task in this process. Disk: bytes of the files that a stage leaves. Read: bytes that
its tasks asked the system for, and signatures that were looked up. Memory: the most that numpy and
Python held in one task (tracemalloc). The last table extrapolates to more documents; memory that
grows with a task's own documents is taken for tasks of the size given there.
"""

import argparse
import math
import sys
import tempfile
import time
import tracemalloc
from collections import deque
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a plain checkout

import numpy as np

from data_prep.clean import stages
from data_prep.clean.dedup.sign import save_digests
from data_prep.clean.files import load, new_rows
from data_prep.clean.settings import CleanSettings
from data_prep.units import mix

EQUAL, NEAR, SIMILARITY = 0.1, 0.15, 0.9
BLOCK = 1 << 16
MEASURED = ("equal", "bands", "pairs", "lend", "compare", "groups")
FOLDERS = dict(zip(MEASURED, ("equal", "bands", "pairs", "lent", "alike", "removed"), strict=True))
LARGE = ((1_000_000_000, 500), (40_000_000_000, 10_000))  # documents, tasks


class Cost(NamedTuple):
    """Of a stage: tasks, bytes on disk and read, most bytes held in one task, CPU seconds."""

    tasks: int
    disk: int
    read: int
    memory: int
    seconds: float


def main() -> None:
    """Print a table for each number of documents, and an estimate for many more."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="for some 600 bytes a document")
    given = parser.parse_args()
    for millions in given.millions:
        documents = int(millions * 1e6)
        with tempfile.TemporaryDirectory(dir=given.folder) as out:
            settings = CleanSettings((), out, given.tasks)
            started = time.process_time()
            make(settings, documents)
            print(
                f"\n{documents:,} documents in {given.tasks} tasks "
                f"(made up in {time.process_time() - started:.0f} s)"
            )
            costs, removed, near = measure(settings)
        show(costs, documents, removed, near)
    follow(costs, documents, given.tasks, near)


def make(settings: CleanSettings, documents: int) -> None:
    """The files that the first stage would have left, of `documents` in all."""
    generator = np.random.default_rng(0)
    bounds = [k * documents // settings.tasks for k in range(settings.tasks + 1)]
    bins = settings.signatures.bins
    for task, (low, high) in enumerate(zip(bounds, bounds[1:], strict=False)):
        digests = bytearray()
        with new_rows(settings.file("work/signatures", task, ".npy"), np.uint16, bins) as rows:
            for at in range(low, high, BLOCK):
                numbers = np.arange(at, min(at + BLOCK, high))
                kind = generator.random(len(numbers))
                earlier = (numbers * generator.random(len(numbers))).astype(np.int64)
                origin = np.where(kind < EQUAL + NEAR, earlier, numbers)
                made = signatures_of(origin, bins)
                other = generator.random(made.shape, np.float32) >= SIMILARITY
                other &= ((kind >= EQUAL) & (kind < EQUAL + NEAR))[:, None]
                made[other] = generator.integers(0, 1 << 16, int(other.sum()), np.uint16)
                rows.write(made)
                digest = np.where(kind < EQUAL, origin, numbers).astype(np.uint64)
                digests += np.stack([mix(digest + np.uint64(1)), mix(~digest)], axis=1).tobytes()
        save_digests(settings, task, digests)


def signatures_of(documents: np.ndarray, bins: int) -> np.ndarray:
    """uint16 [documents, bins], at random but for the same document the same."""
    seeds = mix(documents.astype(np.uint64) + np.uint64(1))[:, None]
    steps = np.arange(1, bins // 4 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return mix(seeds + steps).view(np.uint16).copy()


def measure(settings: CleanSettings) -> tuple[dict[str, Cost], int, int]:
    """Costs of each stage, number of removed documents, and how many of them as near-duplicates."""
    costs = {}
    for stage in stages.stages(settings, 0):
        if stage.name not in MEASURED:
            continue
        read, started, most = bytes_read(), time.process_time(), 0
        for task in range(stage.tasks):
            tracemalloc.start()
            deque(stage.pipeline[0].run(None, task, stage.tasks), maxlen=0)
            most = max(most, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        seconds, read = time.process_time() - started, bytes_read() - read
        folder = settings.folder("work") / FOLDERS[stage.name]
        disk = sum(file.stat().st_size for file in folder.iterdir())
        if stage.name in ("lend", "compare"):  # looked up in memory-mapped files
            lent = settings.folder("work/lent")
            size = sum(file.stat().st_size for file in lent.iterdir())
            read += size * 2 * settings.signatures.bins // (16 + 2 * settings.signatures.bins)
        costs[stage.name] = Cost(stage.tasks, disk, read, most, seconds)
        print(f"  {stage.name} {seconds:.0f} s", file=sys.stderr)
    files = sorted(settings.folder("work/removed").iterdir())
    near = sum(len(load(file)) for file in files)
    equal = sum(f.stat().st_size - 8 - 8 * settings.tasks for f in _files(settings, "equal")) // 16
    return costs, near + equal, near


def _files(settings: CleanSettings, folder: str) -> list[Path]:
    return sorted(settings.folder("work").joinpath(folder).iterdir())


def bytes_read() -> int:
    """Bytes read by this process, from files or from the system's cache of them."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def show(costs: dict[str, Cost], documents: int, removed: int, near: int) -> None:
    """Bytes for each document, but for memory, which is of a task."""
    print(f"{removed:,} go, {near:,} of them as near-duplicates")
    print(
        "stage    tasks  disk B  read B   memory MB  B/document  of                 CPU s/million"
    )
    for name, cost in costs.items():
        of, count = {
            "equal": ("the part's", documents),
            "pairs": ("the part's", documents),
            "groups": ("near-duplicates", near),
        }.get(name, ("the task's", documents / cost.tasks))
        print(
            f"{name:8} {cost.tasks:5} {cost.disk / documents:7.1f} {cost.read / documents:7.1f} "
            f"{cost.memory / 1e6:11.1f} {cost.memory / count:11.1f}  {of:16} "
            f"{cost.seconds / documents * 1e6:15.2f}"
        )
    print(f"all            {sum(c.disk for c in costs.values()) / documents:7.1f} "
          f"{sum(c.read for c in costs.values()) / documents:7.1f}")  # fmt: skip


def follow(costs: dict[str, Cost], documents: int, tasks: int, near: int) -> None:
    """The same for many more documents, with as many tasks as are given in LARGE."""
    share = near / documents
    for count, of in LARGE:
        parts = 1 << max(0, math.ceil(math.log2(count / stages._DOCUMENTS_PER_PART)))
        print(f"\n{count:,} documents in {of:,} tasks, {share:.0%} near-duplicates")
        print("stage    tasks     disk TB  read TB  memory GB of a task  CPU hours  of a task")
        for name, cost in costs.items():
            number = {"equal": parts, "pairs": 20 * parts, "groups": 1}.get(name, of)
            memory = {
                "groups": cost.memory / near * share * count,
                # As many documents as are sorted at once, and the pairs of a part.
                "equal": 4096 * of * 72 + EQUAL * count / parts * 40,
                "pairs": 4096 * of * 64 + cost.disk / 20 / documents * count / parts * 2,
            }.get(name, cost.memory * (count / of) / (documents / tasks))
            hours = cost.seconds / documents * count / 3600
            print(
                f"{name:8} {number:6,} {cost.disk / documents * count / 1e12:10.2f} "
                f"{cost.read / documents * count / 1e12:8.2f} {memory / 1e9:20.1f} {hours:10.0f} "
                f"{hours / number:10.2f}"
            )


if __name__ == "__main__":
    main()
