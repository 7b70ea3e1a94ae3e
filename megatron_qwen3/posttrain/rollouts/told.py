"""What a step of rollouts says of itself, by name: `metrics |= told.of_batch(record, step)`.

reward, pass_rate: means of what was scored; answer_tokens; truncated: share of the answers that
reached their limit; kept: share of the groups that are trained; refills; age: updates between the
weights that sampled and those that are updated. What a mean has nothing of is left out.
No torch here.

Legend: N rollouts.
"""

from __future__ import annotations

import numpy as np

from megatron_qwen3.posttrain.rollouts.record import Array, Record


def of_batch(record: Record, step: int) -> dict[str, float]:
    """Of the batch, at one of its updates, step counted from 0."""
    counts = record.counts
    means = {
        "reward": record.reward_N,
        "pass_rate": record.passed_N,
        "answer_tokens": record.lengths_N,
        "truncated": record.is_truncated_N,
        "age": step - record.versions_N2.mean(1) if len(record) else np.zeros(0),
    }
    told = {name: mean for name, x_N in means.items() if (mean := _mean(x_N)) is not None}
    told["kept"] = counts["kept"] / max(counts["asked"], 1)
    told["refills"] = counts["refills"]
    return told


def _mean(x_N: Array) -> float | None:
    known = x_N[~np.isnan(x_N)]
    return float(known.mean(dtype=np.float64)) if len(known) else None
