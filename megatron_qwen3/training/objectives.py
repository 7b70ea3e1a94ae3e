"""What a mode trains: named means of what a head says of each position.

    objective = cross_entropy                    # or with_z_loss(1e-4)
    metrics = engine.train_step(batch, objective, rate)      # "loss" is the sum of its means

Values are pure, in float32, without reduction or parallelism: the engine weighs them, adds them up
over micro-batches and ranks, and divides by counts that it knows before the first forward pass. So
an objective may add a mean over tokens to one over sequences, and gradients stay plain sums.

Legend: B rows, S positions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from megatron_qwen3.model.outputs import Head, Outputs, log_probs
from megatron_qwen3.training.batch import TokenBatch

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Mean:
    """Σ weight · value / count over the global batch.

    weights: of a batch, float32, at least 0, [B, S] for values of positions or [B] for values of
    rows; what has weight 0 is left out, even if it is NaN: its derivative must not be.
    count: a constant above 0, else ValueError; None is the sum of the weights.
    """

    weights: Callable[[TokenBatch], Tensor]
    count: float | None = None

    def __post_init__(self) -> None:
        if self.count is not None and not self.count > 0:
            raise ValueError(f"a mean divides by count = {self.count}; valid: above 0")


def _weights_of_positions(batch: TokenBatch) -> Tensor:
    return batch.weights_BS


def _weights_of_rows(batch: TokenBatch) -> Tensor:
    return (batch.weights_BS != 0).any(1).float()


per_token = Mean(_weights_of_positions)
per_sequence = Mean(_weights_of_rows)
"""Over rows that have a trained position, each of weight 1."""


@dataclass(frozen=True)
class Objective:
    """values: of each position [B, S] or row [B], by name, from the head's outputs;
    losses: which of them are trained: their means add up to the loss;
    metrics: which are only reported."""

    head: Head
    values: Callable[[Outputs, TokenBatch], Values]
    losses: Mapping[str, Mean]
    metrics: Mapping[str, Mean] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, Mean]:
        """Losses, then metrics."""
        return {**self.losses, **self.metrics}

    def check(self, batch: TokenBatch) -> None:
        """ValueError where the values are not of the shape of their weights; on one row, of zeros.

        A step asks before its first forward pass: a fault in the middle of a schedule would leave
        other stages waiting.
        """
        row = next(batch.split(1))
        outputs = self.head.empty(1, row.length, row.tokens_BS.device)
        values = self.values(outputs, row)
        for name, mean in self.means.items():
            if name not in values:
                raise ValueError(f"the objective gives no {name}; it gives {', '.join(values)}")
            wanted, got = mean.weights(row).shape, values[name].shape
            if wanted != got:
                raise ValueError(
                    f"the objective's {name} has shape {[*got]} for one row of {row.length} "
                    f"positions, and its weights have {[*wanted]}"
                )


def _cross_entropy(outputs: Outputs, batch: TokenBatch) -> Values:
    return {"cross_entropy": -outputs["log_prob"]}


cross_entropy = Objective(log_probs, _cross_entropy, {"cross_entropy": per_token})
"""-log p(label), in nats."""


def with_z_loss(coefficient: float) -> Objective:
    """Cross-entropy + coefficient · log² z, which keeps logits near 0 (PaLM, 2204.02311)."""

    def values(outputs: Outputs, batch: TokenBatch) -> Values:
        z_loss = coefficient * outputs["log_z"].square()
        return {**_cross_entropy(outputs, batch), "z_loss": z_loss}

    return Objective(log_probs, values, {"cross_entropy": per_token, "z_loss": per_token})
