"""Packs rollouts into a few arrays, which reach other ranks faster than objects.

    made = unpacked(asks, told(packed(rollouts)))

The asks are not among them: all ranks know those. Nothing here imports torch.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from megatron_qwen3.posttrain.rollouts.rollout import Ask, Rollout


def packed(groups: Sequence[Sequence[Rollout]]) -> dict[str, Any]:
    """Arrays of the rollouts: tokens one after another, other fields by rollout."""
    flat = list(chain.from_iterable(groups))
    total = sum(len(r.tokens) for r in flat)
    every = chain.from_iterable
    return {
        "lengths": np.array([len(r.tokens) for r in flat], np.int64),
        "tokens": np.fromiter(every(r.tokens for r in flat), np.int32, total),
        "log_probs": np.fromiter(every(r.log_probs for r in flat), np.float64, total),
        "sampled": np.fromiter(every(r.sampled for r in flat), bool, total),
        "versions": np.array([r.versions for r in flat], np.int64).reshape(-1, 2),
        "finish": [r.finish for r in flat],
        "errors": {n: r.error for n, r in enumerate(flat) if r.error},
    }


def unpacked(asks: Sequence[Ask], arrays: dict[str, Any]) -> list[list[Rollout]]:
    """The samples of each ask, in order."""
    ends = np.cumsum(arrays["lengths"])
    made: list[list[Rollout]] = []
    number = 0
    for ask in asks:
        made.append([])
        for _ in range(ask.samples):
            place = slice(int(ends[number] - arrays["lengths"][number]), int(ends[number]))
            first, last = arrays["versions"][number].tolist()
            rollout = Rollout(
                task=ask.task,
                prompt=ask.prompt,
                tokens=tuple(arrays["tokens"][place].tolist()),
                log_probs=tuple(arrays["log_probs"][place].tolist()),
                sampled=tuple(arrays["sampled"][place].tolist()),
                finish=arrays["finish"][number],
                versions=(first, last),
                thinking=ask.thinking,
                seed=ask.seed,
                error=arrays["errors"].get(number, ""),
            )
            made[-1].append(rollout)
            number += 1
    return made
