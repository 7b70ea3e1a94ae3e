"""What the data gives, as the engine takes it: `batch = token_batch(mixture.read(places))`."""

import torch

from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.pretrain.data import Rows
from megatron_qwen3.training.batch import TokenBatch


def token_batch(rows: Rows) -> TokenBatch:
    """All positions are trained; where documents are kept apart, each document's last is not."""
    tokens_BS, labels_BS = torch.from_numpy(rows.tokens_BS), torch.from_numpy(rows.labels_BS)
    if rows.documents is None:
        return TokenBatch.of(tokens_BS, labels_BS)
    weights_BS = torch.from_numpy(rows.documents.goes_on_BS).float()
    stretches = Stretches.of(rows.documents.starts, tokens_BS.shape[1])
    return TokenBatch(tokens_BS, labels_BS, weights_BS, stretches)
