"""Turns rows of the data into arrays of a batch: `arrays_of(mixture.read(places))`. No torch."""

from dataclasses import dataclass

import numpy as np

from megatron_qwen3.pretrain.data import Mixture, SampleRows
from megatron_qwen3.training.arrays import Arrays


def arrays_of(rows: SampleRows) -> Arrays:
    """All positions are trained, except, where documents are kept apart, each document's last.

    Filler of packed text is padding; neither it nor the last token before it is trained. Nor are
    the places of a removed document, nor the token before it.
    """
    weights_BS, starts, valid_BS = np.ones(rows.tokens_BS.shape, np.float32), None, None
    if rows.documents is not None:
        weights_BS, starts = rows.documents.goes_on_BS.astype(np.float32), rows.documents.starts
    if rows.packed is not None:
        weights_BS = weights_BS * rows.packed.has_label_BS
        valid_BS = rows.packed.is_text_BS
    if rows.is_removed_BS is not None:
        weights_BS = weights_BS * ~rows.is_removed_BS
    return Arrays(rows.tokens_BS, rows.labels_BS, weights_BS, starts, valid_BS)


@dataclass(frozen=True)
class StepRows:
    """Rows of the global batch of any step: `read(step)`. share: the rows of one data rank."""

    mixture: Mixture
    share: range
    keeps_documents_apart: bool

    def __call__(self, step: int) -> Arrays:
        first = self.mixture.first_sample(step) + self.share.start
        return arrays_of(self.mixture.batch(first, len(self.share), self.keeps_documents_apart))
