"""Rows of pairs as the engine takes them: `pair_batch(rows, mixture, length)`.

Each answer is a stretch of its own, with the conversation before it: it sees no other, and counts
positions from 0; the chosen one of a pair comes first, the rejected one right after it. A reward is
read at the token that ends its answer, which the set marks, never at padding.

Legend: B rows, S positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.posttrain.bradley_terry import MARGIN, REJECTED
from megatron_qwen3.posttrain.packing import Place
from megatron_qwen3.posttrain.pair_mixture import PairMixture
from megatron_qwen3.training.batch import TokenBatch

SOURCE = "source"


def pair_batch(
    rows: Sequence[Sequence[Place]], mixture: PairMixture, length: int, margin: bool
) -> TokenBatch:
    """Rows of `length` places. margin: whether pairs keep theirs, as reward.margin says.

    weights_BS: above 0 where a chosen answer ends: the pair's weight. The extras are those of
    `bradley_terry.over_pairs`, and `source` there, int64 [B, S]: the number of the pair's set.
    No label is trained: labels_BS are the tokens again.
    """
    shape = len(rows), length
    tokens_BS, rejected_BS, source_BS = np.zeros((3, *shape), np.int64)
    weights_BS, margin_BS = np.zeros((2, *shape), np.float32)
    valid_BS = np.zeros(shape, np.bool_)
    starts: list[list[int]] = []
    for b, places in enumerate(rows):
        end, begins = 0, []
        for source, pair in places:
            dialogs, ends = mixture.sources[source].dialogs, []
            for sample in (2 * pair, 2 * pair + 1):
                ids, marked = dialogs.read(sample)
                begins.append(end)
                ends.append(end + int(np.flatnonzero(marked)[-1]))
                tokens_BS[b, end : end + len(ids)] = ids
                end += len(ids)
            chosen, rejected_BS[b, ends[0]] = ends
            source_BS[b, chosen], weights_BS[b, chosen] = source, dialogs.weights_N[2 * pair]
            margin_BS[b, chosen] = dialogs.margins_N[2 * pair] if margin else 0
        valid_BS[b, :end] = True
        starts.append([*begins, end] if end < length else begins)
    extra = {REJECTED: rejected_BS, MARGIN: margin_BS, SOURCE: source_BS}
    tokens = torch.from_numpy(tokens_BS)
    return TokenBatch(
        tokens,
        tokens,
        torch.from_numpy(weights_BS),
        Stretches.of(starts, length),
        torch.from_numpy(valid_BS),
        {name: torch.from_numpy(x_BS) for name, x_BS in extra.items()},
    )
