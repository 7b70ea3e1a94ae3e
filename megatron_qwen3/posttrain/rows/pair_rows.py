"""Rows of pairs as arrays of a batch: `arrays_of(rows, mixture, length, margin)`. No torch here.

Each answer, with the conversation before it, is a document of its own: it attends to no other, and
its positions count from 0. A pair's rejected answer follows its chosen one. A reward is read at the
token that ends its answer, which the set marks, never at padding.

Legend: B rows, S positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_qwen3.config import Config
from megatron_qwen3.posttrain.rows.packing import PackedPlace
from megatron_qwen3.posttrain.rows.pair_mixture import PairMixture
from megatron_qwen3.training.arrays import Arrays

REJECTED, MARGIN, SOURCE = "rejected", "margin", "source"
"""Extras of a batch of pairs, [B, S], read only where a chosen answer ends (weights above 0): the
position in the row where the pair's rejected answer ends, int64; the pair's margin, float32; and
the number of the pair's set, int64."""


def arrays_of(
    rows: Sequence[Sequence[PackedPlace]], mixture: PairMixture, length: int, margin: bool
) -> Arrays:
    """Rows of `length` places. margin: whether pairs keep their margins (reward.margin).

    weights_BS: above 0 where a chosen answer ends: the pair's weight. No label is trained:
    labels_BS are the tokens again.
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
    extra: dict[str, npt.NDArray[Any]] = {REJECTED: rejected_BS, MARGIN: margin_BS}
    extra[SOURCE] = source_BS
    return Arrays(tokens_BS, tokens_BS, weights_BS, starts, valid_BS, extra)


@dataclass(frozen=True)
class PairRows:
    """Rows of the global batch of any step: `read(step)`. share: the rows of one data rank.

    A process that receives it by pickle opens the sets itself.
    """

    config: Config
    share: range
    mixture: PairMixture

    def __call__(self, step: int) -> Arrays:
        config, first = self.config, step * self.config.train.global_batch + self.share.start
        rows = self.mixture.rows(first, len(self.share))
        return arrays_of(rows, self.mixture, config.data.sequence_length, config.reward.margin)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.config, self.share)


def _opened(config: Config, share: range) -> PairRows:
    return PairRows(config, share, PairMixture(config))
