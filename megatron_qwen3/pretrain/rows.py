"""What the data gives, as the engine takes it: `batch = token_batch(mixture.read(places))`."""

from dataclasses import replace

import torch

from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.pretrain.data import Rows
from megatron_qwen3.training.batch import TokenBatch


def token_batch(rows: Rows) -> TokenBatch:
    """All positions are trained; where documents are kept apart, each document's last is not.

    Filler of packed text is padding, and neither it nor the last token before it is trained.
    """
    tokens_BS, labels_BS = torch.from_numpy(rows.tokens_BS), torch.from_numpy(rows.labels_BS)
    batch = TokenBatch.of(tokens_BS, labels_BS)
    if rows.documents is not None:
        weights_BS = torch.from_numpy(rows.documents.goes_on_BS).float()
        stretches = Stretches.of(rows.documents.starts, tokens_BS.shape[1])
        batch = replace(batch, weights_BS=weights_BS, stretches=stretches)
    if rows.packed is not None:
        weights_BS = batch.weights_BS * torch.from_numpy(rows.packed.has_label_BS)
        valid_BS = torch.from_numpy(rows.packed.is_text_BS)
        batch = replace(batch, weights_BS=weights_BS, valid_BS=valid_BS)
    return batch
