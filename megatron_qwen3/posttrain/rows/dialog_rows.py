"""Rows of samples as arrays of a batch: `arrays_of(rows, mixture, length, loss)`. No torch here.

Each sample is a document of its own: it attends to no other, and its positions count from 0. The
empty end of a row is one more document, of padding. Weights are such that the mean over the global
batch, the sum of weighted losses divided by the sum of weights, is the mean of sft.loss:

- token: each trained token has its sample's weight;
- dialog: the trained tokens of all samples of a dialog in its set have the dialog's weight in all,
  split evenly over its samples; so a dialog of many turns weighs no more than another.

Legend: B rows, S places.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_qwen3.config import Config
from megatron_qwen3.posttrain.rows.dialog_mixture import DialogMixture
from megatron_qwen3.posttrain.rows.packing import PackedPlace
from megatron_qwen3.posttrain.rows.stored_targets import StoredTargets
from megatron_qwen3.training.arrays import Arrays


def arrays_of(
    rows: Sequence[Sequence[PackedPlace]], mixture: DialogMixture, length: int, loss: str
) -> Arrays:
    """Rows of `length` places. loss: as sft.loss."""
    tokens_BS = np.zeros((len(rows), length), np.int64)
    labels_BS = np.zeros_like(tokens_BS)
    weights_BS = np.zeros(tokens_BS.shape, np.float32)
    valid_BS = np.zeros(tokens_BS.shape, np.bool_)
    starts: list[list[int]] = []
    for row, places in enumerate(rows):
        begins, end = [], 0
        for place in places:
            ids, trained = mixture.sample(place)
            begins.append(end)
            here = slice(end, end + len(ids) - 1)
            tokens_BS[row, here], labels_BS[row, here] = ids[:-1], ids[1:]
            weights_BS[row, here] = _weights(trained[1:], place, mixture, loss)
            end = here.stop
        valid_BS[row, :end] = True
        starts.append([*begins, end] if end < length else begins)
    return Arrays(tokens_BS, labels_BS, weights_BS, starts, valid_BS)


@dataclass(frozen=True)
class DialogRows:
    """Rows of the global batch of any step: `read(step)`, with targets where they are stored.

    share: the rows of one data rank. A process that receives it by pickle opens the sets itself,
    since an open set is pickled with all its content.
    """

    config: Config
    share: range
    mixture: DialogMixture
    stored: StoredTargets | None = None

    def __call__(self, step: int) -> Arrays:
        config, first = self.config, step * self.config.train.global_batch + self.share.start
        rows = self.mixture.rows(first, len(self.share))
        arrays = arrays_of(rows, self.mixture, config.data.sequence_length, config.sft.loss)
        return self.stored.with_targets(arrays, rows) if self.stored else arrays

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.config, self.share, self.stored is not None)


def _opened(config: Config, share: range, is_taught: bool) -> DialogRows:
    mixture = DialogMixture(config)
    return DialogRows(config, share, mixture, StoredTargets(config, mixture) if is_taught else None)


def _weights(
    trained_S: npt.NDArray[Any], place: PackedPlace, mixture: DialogMixture, loss: str
) -> npt.NDArray[np.float32]:
    weight = mixture.weight(place)
    if loss == "dialog":
        weight /= mixture.siblings(place) * max(1, int(np.count_nonzero(trained_S)))
    return trained_S.astype(np.float32) * np.float32(weight)
