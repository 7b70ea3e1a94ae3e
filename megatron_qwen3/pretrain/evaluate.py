"""Loss and bits per byte on the held-out end of each source.

Bits per byte divide the loss by the UTF-8 bytes of the predicted tokens, so that models with
different tokenizers can be compared. Legend: N windows, S positions.
"""

import math

import numpy as np
import torch

from data_prep.tokenizer import token_bytes
from megatron_qwen3.config import Config
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.metrics import EvalResult


def evaluate(engine: Engine, mixture: Mixture, config: Config) -> dict[str, EvalResult]:
    """Results by source name, equal on all ranks; {} where nothing is held out."""
    if not config.data.held_out:
        return {}
    byte_counts = token_bytes(config.data.tokenizer) if config.data.tokenizer else None
    return {
        name: _evaluate_source(engine, mixture.held_out(index, config.eval.tokens), byte_counts)
        for index, name in enumerate(mixture.names)
    }


def _evaluate_source(
    engine: Engine, windows_NS1: np.ndarray, byte_counts: np.ndarray | None
) -> EvalResult:
    batch = _share_of_rank(engine, torch.from_numpy(windows_NS1))
    nats = -(engine.score(batch).cpu() * batch.weights_BS).double().sum()
    num_bytes = 0.0
    if byte_counts is not None:
        num_bytes = float((torch.from_numpy(byte_counts)[batch.labels_BS] * batch.weights_BS).sum())
    sums = torch.tensor([nats, batch.weights_BS.double().sum(), num_bytes], dtype=torch.float64)
    total_nats, tokens, total_bytes = engine.sum_over_data(sums).tolist()
    bits_per_byte = total_nats / math.log(2) / total_bytes if total_bytes else None
    return EvalResult(total_nats / tokens, bits_per_byte, int(tokens))


def _share_of_rank(engine: Engine, windows_NS1: torch.Tensor) -> TokenBatch:
    """Every data rank gets equally many rows: the first ones, padded by rows of weight 0."""
    ranks, rank = engine.layout.data, engine.data_rank
    rows = -(-len(windows_NS1) // ranks)
    mine_BS1 = windows_NS1[rank * rows : (rank + 1) * rows]
    if not len(mine_BS1):
        empty = TokenBatch.of(windows_NS1[:1, :-1], windows_NS1[:1, 1:])
        return TokenBatch(
            empty.tokens_BS, empty.labels_BS, torch.zeros_like(empty.weights_BS)
        ).padded_to(rows)
    return TokenBatch.of(mine_BS1[:, :-1], mine_BS1[:, 1:]).padded_to(rows)
