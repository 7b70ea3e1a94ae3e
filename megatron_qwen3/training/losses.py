"""Losses per token: pure functions in float32, without reduction or parallelism.

    per_token_BS = loss(outputs, batch)

The engine weighs, adds up and normalises them. Legend: B sequences, S positions.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from megatron_qwen3.training.batch import TokenBatch


@dataclass(frozen=True)
class TokenOutputs:
    """What the model says of each label: log p(label), and log z, the log-sum-exp of the logits."""

    log_prob_BS: Tensor
    log_z_BS: Tensor


Loss = Callable[[TokenOutputs, TokenBatch], Tensor]


def cross_entropy(outputs: TokenOutputs, batch: TokenBatch) -> Tensor:
    """-log p(label), in nats."""
    return -outputs.log_prob_BS


def cross_entropy_with_z_loss(coefficient: float) -> Loss:
    """Cross-entropy + coefficient · log² z, which keeps logits near 0 (PaLM, 2204.02311)."""

    def loss(outputs: TokenOutputs, batch: TokenBatch) -> Tensor:
        return cross_entropy(outputs, batch) + coefficient * outputs.log_z_BS.square()

    return loss
