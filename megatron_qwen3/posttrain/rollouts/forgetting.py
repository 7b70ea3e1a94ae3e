"""What becomes of old batches of a run: `forget(run_dir, before)`, as the run goes on.

A run has tens of thousands of batches, and a disk must not be filled by them. Arrays are needed as
long as a resume may go on with them; answers to be read stay for the newest batches, and for some
of those before. What a batch was in numbers stays of all. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_qwen3.posttrain.rollouts.record import batches, folder_of
from megatron_qwen3.posttrain.rollouts.record_files import ARRAYS_FILE, RATES_FILE, SAMPLES_FILE

KEPT_SAMPLES, KEPT_EVERY = 256, 64  # of the newest batches, and of one in so many before them


def _thin_out_samples(run_dir: Path, old: Sequence[int]) -> None:
    """Keep the answers of the newest batches, and of some before them: a batch's are megabytes."""
    for batch in reversed(old[:-KEPT_SAMPLES]):
        if batch % KEPT_EVERY:
            path = folder_of(run_dir, batch) / SAMPLES_FILE
            if not path.exists():
                return  # nor have those before it
            path.unlink()


def forget(run_dir: Path, before: int, arrays: bool = True) -> None:
    """Of batches below `before` keep what is for reading. arrays: let them go, and most of the
    answers of batches long ago; pass rates of single tasks go anyhow, but of the newest of these
    batches, which the next one goes on from."""
    old = [batch for batch in batches(run_dir) if batch < before]
    if arrays:
        _thin_out_samples(run_dir, old)
    for place, batch in enumerate(reversed(old)):
        folder = folder_of(run_dir, batch)
        last = [folder / ARRAYS_FILE] if arrays else []
        last += [folder / RATES_FILE] if place else []
        if place and not any(path.exists() for path in last):
            return  # nor have those before it: a long run has tens of thousands
        others = [path for path in folder.glob("*.npz") if path.name != ARRAYS_FILE]
        for path in (*(others if arrays else ()), *reversed(last)):
            path.unlink(missing_ok=True)
