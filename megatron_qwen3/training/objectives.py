"""Objectives: named means, to train or to report, of a head's outputs at each position.

    objective = cross_entropy                    # or with_z_loss(1e-4)
    metrics = engine.train_step(batch, objective, rate)      # "loss" is the sum of its means

Values are pure, in float32, without reduction or parallelism: the engine weights them, adds them up
over micro-batches and ranks, and divides by counts that it knows before the first forward pass. So
an objective may add a mean over tokens to one over sequences, and gradients stay plain sums.

Legend: B rows, S positions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from megatron_qwen3.model.outputs import Head, Outputs, log_probs
from megatron_qwen3.training.batch import TokenBatch

Values = Mapping[str, Tensor]

_OF_STEP = ("loss", "grad_norm", "memory_peak_bytes", "memory_reserved_bytes")
_OF_ROUTERS = ("aux_loss", "aux_loss_last_step", "expert_balance", "idle_experts")
_OF_ROW = ("kind", "step", "tokens", "lr")
_OF_SPEED = ("step_seconds", "tokens_per_second", "tflops_per_rank", "mfu")
RESERVED: Final = frozenset((*_OF_STEP, *_OF_ROUTERS, *_OF_ROW, *_OF_SPEED))
"""Other names in a step's row of metrics, which no mean may have."""


@dataclass(frozen=True)
class Mean:
    """Σ weight · value / count over the global batch.

    weights: of a batch, float32, at least 0, [B, S] for values of positions or [B] for values of
    rows; values of weight 0 are left out, even NaN: only their derivative must be finite.
    count: a constant above 0, else ValueError; None: the sum of the weights.
    """

    weights: Callable[[TokenBatch], Tensor]
    count: float | None = None

    def __post_init__(self) -> None:
        if self.count is not None and not self.count > 0:
            raise ValueError(f"a mean divides by count = {self.count}; valid: above 0")

    def of(self, batch: TokenBatch) -> Tensor:
        """The weights of a batch; 0 in rows that only fill the schedule."""
        weights = self.weights(batch)
        if batch.filling:
            weights = weights.clone()
            weights[batch.rows - batch.filling :] = 0
        return weights


def _weights_of_positions(batch: TokenBatch) -> Tensor:
    return batch.weights_BS


def _weights_of_rows(batch: TokenBatch) -> Tensor:
    return (batch.weights_BS != 0).any(1).float()


per_token = Mean(_weights_of_positions)
per_sequence = Mean(_weights_of_rows)
"""A mean over rows with a trained position, each of weight 1."""


@dataclass(frozen=True)
class Objective:
    """values: computes named values of each position [B, S] or row [B] from the head's outputs;
    losses: means to train, at least one: they add up to the loss;
    metrics: means that are only reported;
    largest: means of which only the largest value of nonzero weight is reported, at least 0.

    ValueError for a name that is given twice, or is RESERVED.
    """

    head: Head
    values: Callable[[Outputs, TokenBatch], Values]
    losses: Mapping[str, Mean]
    metrics: Mapping[str, Mean] = field(default_factory=dict)
    largest: Mapping[str, Mean] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.losses:
            raise ValueError("an objective without losses trains nothing")
        if twice := self.losses.keys() & self.metrics.keys():
            raise ValueError(f"{', '.join(sorted(twice))}: among the losses and the metrics")
        if twice := self.largest.keys() & self.means.keys():
            raise ValueError(f"{', '.join(sorted(twice))}: a mean, and a largest value")
        if taken := RESERVED & (self.means.keys() | self.largest.keys()):
            raise ValueError(
                f"a mean is named {', '.join(sorted(taken))}, as another metric of a step"
            )

    @property
    def means(self) -> dict[str, Mean]:
        """Losses, then metrics."""
        return {**self.losses, **self.metrics}

    def sums(self, outputs: Outputs, batch: TokenBatch) -> dict[str, Tensor]:
        """Σ weight · value of each mean over a batch.

        ValueError where a value is missing, or its shape differs from its weights'.
        """
        return self.sums_and_largest(outputs, batch)[0]

    def sums_and_largest(
        self, outputs: Outputs, batch: TokenBatch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`sums`, and each largest value of `largest`, 0 without any."""
        values, sums, largest = self.values(outputs, batch), {}, {}
        # A value of weight 0 may even be NaN.
        for name, mean in self.means.items():
            value, weights = _weighed(values, name, mean, batch)
            sums[name] = torch.where(weights != 0, value * weights, 0.0).sum()
        for name, mean in self.largest.items():
            value, weights = _weighed(values, name, mean, batch)
            largest[name] = torch.where(weights != 0, value.detach(), 0.0).max()
        return sums, largest

    def check(self, batch: TokenBatch) -> None:
        """ValueError where a value's shape differs from its weights', or a loss has no gradient;
        tried on two rows of zeros.

        A step calls it before its first forward pass: a fault within a schedule would leave other
        stages waiting.
        """
        rows = next(batch.split(2))
        outputs = self.head.empty(rows.rows, rows.length, rows.tokens_BS.device)
        for x in outputs.values():
            x.requires_grad_(x.is_floating_point())
        sums = self.sums(outputs, rows)
        for name in self.losses:
            if not sums[name].requires_grad:
                raise ValueError(f"the objective's {name} has no gradient: no output is part of it")

    def weights_on_padding(self, batch: TokenBatch) -> Tensor:
        """Number of padded positions with a weight in a loss, float64."""
        weights = [mean.of(batch) for mean in self.losses.values()]
        is_trained = [x != 0 for x in weights if x.shape == batch.tokens_BS.shape]
        if batch.valid_BS is None or not is_trained:
            return torch.zeros_like(batch.positions)
        found_BS = torch.stack(is_trained).any(0) & ~batch.valid_BS
        return found_BS.sum(dtype=torch.float64)


def _weighed(values: Values, name: str, mean: Mean, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """A value and its weights. ValueError where it is missing, or of another shape."""
    if name not in values:
        raise ValueError(f"the objective gives no {name}; it gives {', '.join(values)}")
    value, weights = values[name], mean.of(batch)
    if value.shape != weights.shape:
        raise ValueError(
            f"the objective's {name} has shape {[*value.shape]} for {batch.rows} rows of "
            f"{batch.length} positions, and its weights have {[*weights.shape]}"
        )
    return value, weights


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
