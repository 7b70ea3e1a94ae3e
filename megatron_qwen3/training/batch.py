"""The one type of batch of every mode. Legend: B sequences, S positions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from megatron_qwen3.model.stretches import Stretches


@dataclass(frozen=True)
class TokenBatch:
    """Sequences of one data-parallel rank.

    tokens_BS: int64 ids; labels_BS: the id that each position should predict;
    weights_BS: float32, the weight of each position in the loss, 0 = not trained;
    stretches: where the documents of a row begin, which are kept apart and each count positions
    from 0. None is a row that is read as one text;
    valid_BS: bool, False where a position is padding, which is not trained and which no router
    counts. None is a batch without padding.
    """

    tokens_BS: Tensor
    labels_BS: Tensor
    weights_BS: Tensor
    stretches: Stretches | None = None
    valid_BS: Tensor | None = None

    def __post_init__(self) -> None:
        """ValueError where a field is of other rows or another length than the tokens."""
        shape = self.tokens_BS.shape
        for name in ("labels_BS", "weights_BS", "valid_BS"):
            x = getattr(self, name)
            if x is not None and x.shape != shape:
                raise ValueError(f"{name} is {[*x.shape]}, tokens_BS {[*shape]}: [rows, length]")
        if self.stretches and (self.stretches.rows, self.stretches.length) != shape:
            rows, length = self.stretches.rows, self.stretches.length
            raise ValueError(f"stretches are of {[rows, length]}, tokens_BS {[*shape]}")

    @classmethod
    def of(
        cls, tokens_BS: Tensor, labels_BS: Tensor, stretches: Stretches | None = None
    ) -> "TokenBatch":
        """A batch in which every position is trained."""
        weights_BS = torch.ones(tokens_BS.shape, dtype=torch.float32)
        return cls(tokens_BS, labels_BS, weights_BS, stretches)

    @property
    def rows(self) -> int:
        return self.tokens_BS.shape[0]

    @property
    def size(self) -> Tensor:
        """[2] float64: the sum of the weights, and the number of positions that are no padding."""
        weight = self.weights_BS.sum(dtype=torch.float64)
        if self.valid_BS is None:
            return torch.stack([weight, torch.full_like(weight, self.tokens_BS.numel())])
        return torch.stack([weight, self.valid_BS.sum(dtype=torch.float64)])

    def to(self, device: torch.device) -> "TokenBatch":
        return self._map(lambda x: x.to(device, non_blocking=True), lambda x: x.to(device))

    def pinned(self) -> "TokenBatch":
        """A copy in memory that stays where it is, which a GPU reads by itself."""
        return self._map(lambda x: x.pin_memory(), lambda x: x.pinned())

    def split(self, rows: int) -> Iterator["TokenBatch"]:
        """Micro-batches of `rows` sequences, in order."""
        for start in range(0, self.rows, rows):
            end = start + rows
            yield self._map(
                lambda x, a=start, b=end: x[a:b], lambda x, a=start, b=end: x.of_rows(a, b)
            )

    def padded_to(self, rows: int) -> "TokenBatch":
        """`rows` sequences: the first one repeated, as padding of weight 0, fills the end."""
        missing = rows - self.rows
        if not missing:
            return self
        valid_BS = self.valid_BS
        if valid_BS is None:
            valid_BS = torch.ones_like(self.tokens_BS, dtype=torch.bool)

        def pad(x: Tensor) -> Tensor:
            return torch.cat([x, x[:1].expand(missing, -1)])

        padded = replace(self, valid_BS=valid_BS)._map(pad, lambda x: x.padded_to(rows))
        for counted_BS in (padded.weights_BS, padded.valid_BS):
            counted_BS[self.rows :] = 0
        return padded

    def _map(
        self,
        change: Callable[[Tensor], Tensor],
        change_stretches: Callable[[Stretches], Stretches],
    ) -> "TokenBatch":
        def changed(x: Any) -> Any:
            if x is None:
                return None
            return change_stretches(x) if isinstance(x, Stretches) else change(x)

        return TokenBatch(*(changed(getattr(self, field.name)) for field in fields(self)))
