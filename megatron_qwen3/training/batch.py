"""The one type of batch of every mode. Legend: B sequences, S positions."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """Sequences of one data-parallel rank.

    tokens_BS: int64 ids; labels_BS: the id that each position should predict;
    weights_BS: float32, the weight of each position in the loss, 0 = not trained;
    positions_BS: int64, each token's place in its document, where documents that share a row are
    kept apart: a 0 begins one. None is a row that is read as one text;
    valid_BS: bool, False where a position is padding, which is not trained and which no router
    counts. None is a batch without padding.
    """

    tokens_BS: Tensor
    labels_BS: Tensor
    weights_BS: Tensor
    positions_BS: Tensor | None = None
    valid_BS: Tensor | None = None

    @classmethod
    def of(
        cls, tokens_BS: Tensor, labels_BS: Tensor, positions_BS: Tensor | None = None
    ) -> "TokenBatch":
        """A batch in which every position is trained."""
        weights_BS = torch.ones(tokens_BS.shape, dtype=torch.float32)
        return cls(tokens_BS, labels_BS, weights_BS, positions_BS)

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
        return self._map(lambda x: x.to(device, non_blocking=True))

    def pinned(self) -> "TokenBatch":
        """A copy in memory that stays where it is, which a GPU reads by itself."""
        return self._map(lambda x: x.pin_memory())

    def split(self, rows: int) -> Iterator["TokenBatch"]:
        """Micro-batches of `rows` sequences, in order."""
        for start in range(0, self.rows, rows):
            yield self._map(lambda x, start=start: x[start : start + rows])

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

        padded = replace(self, valid_BS=valid_BS)._map(pad)
        for counted_BS in (padded.weights_BS, padded.valid_BS):
            counted_BS[self.rows :] = 0
        return padded

    def _map(self, change) -> "TokenBatch":  # type: ignore[no-untyped-def]
        tensors = (getattr(self, field.name) for field in fields(self))
        return TokenBatch(*(None if x is None else change(x) for x in tensors))
