"""Removes data of a run's old batches that is no longer needed: `forget(run_dir, before)`.

A run has tens of thousands of batches, which would fill a disk. Arrays are kept as long as a resume
may need them; sample answers are kept for the newest batches and for some of the earlier ones.
Metrics of a batch are kept for ever. No torch here.
"""

from collections.abc import Sequence
from pathlib import Path

from megatron_qwen3.posttrain.rollouts.record import batches, folder_of
from megatron_qwen3.posttrain.rollouts.record_files import ARRAYS_FILE, RATES_FILE, SAMPLES_FILE

KEPT_SAMPLES, KEPT_EVERY = 256, 64  # of the newest batches, and of one in so many before them


def _thin_out_samples(run_dir: Path, old: Sequence[int]) -> None:
    """Keep sample answers of the newest batches and of some earlier ones: each has megabytes."""
    for batch in reversed(old[:-KEPT_SAMPLES]):
        if batch % KEPT_EVERY:
            path = folder_of(run_dir, batch) / SAMPLES_FILE
            if not path.exists():
                return  # earlier ones are thinned out already
            path.unlink()


def forget(run_dir: Path, before: int, arrays: bool = True) -> None:
    """Remove from batches below `before` all but the files for reading. arrays: remove their
    arrays, too, and most sample answers of long ago. Pass rates of single tasks are removed in any
    case, except in the newest of these batches, which the next batch starts from."""
    old = [batch for batch in batches(run_dir) if batch < before]
    if arrays:
        _thin_out_samples(run_dir, old)
    for place, batch in enumerate(reversed(old)):
        folder = folder_of(run_dir, batch)
        last = [folder / ARRAYS_FILE] if arrays else []
        last += [folder / RATES_FILE] if place else []
        if place and not any(path.exists() for path in last):
            return  # earlier ones are done already: a long run has tens of thousands
        others = [path for path in folder.glob("*.npz") if path.name != ARRAYS_FILE]
        for path in (*(others if arrays else ()), *reversed(last)):
            path.unlink(missing_ok=True)
