"""TokenBatch, the batch type of every mode. Legend: B sequences, S positions."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter, methodcaller
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_qwen3.model.context import ContextShare
from megatron_qwen3.model.document_share import DocumentShare
from megatron_qwen3.model.sequences import Sequences
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.training.arrays import Arrays

Share = ContextShare | DocumentShare  # the positions of one context-parallel rank


class ContextPart(NamedTuple):
    """The part of a TokenBatch that belongs to one context-parallel rank."""

    labels_BS: Tensor
    extra: Mapping[str, Tensor]


@dataclass(frozen=True)
class TokenBatch:
    """Sequences of one data-parallel rank. ValueError where their lengths differ.

    tokens_BS: int64 ids; labels_BS: the id that each position should predict;
    weights_BS: float32, the weight of each position in the loss, 0 = not trained;
    stretches: the documents of each row, which attend only to themselves and count positions from
    0. None: each row is one text;
    valid_BS: bool, False for padding, which is not trained and which no router counts. None: no
    padding;
    extra: further inputs of an objective, [B, …] each, by name;
    filling: number of rows at the end that only fill the schedule, and count in no mean.
    """

    tokens_BS: Tensor
    labels_BS: Tensor
    weights_BS: Tensor
    stretches: Stretches | None = None
    valid_BS: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    filling: int = 0

    def __post_init__(self) -> None:
        shape = self.tokens_BS.shape
        if len(shape) != 2 or not shape[0] or not shape[1]:
            raise ValueError(
                f"tokens_BS has shape {[*shape]}; valid: [rows, positions], at least 1"
            )
        for name in ("labels_BS", "weights_BS", "valid_BS"):
            x = getattr(self, name)
            if x is not None and x.shape != shape:
                raise ValueError(f"{name} has shape {[*x.shape]}, and tokens_BS {[*shape]}")
        if self.stretches and (self.stretches.rows, self.stretches.length) != shape:
            rows, length = self.stretches.rows, self.stretches.length
            raise ValueError(f"stretches are of {[rows, length]}, tokens_BS of {[*shape]}")
        for name, x in self.extra.items():
            if x.shape[:1] != shape[:1]:
                raise ValueError(
                    f"extra {name} has shape {[*x.shape]}, but there are {shape[0]} rows"
                )

    @classmethod
    def of(
        cls, tokens_BS: Tensor, labels_BS: Tensor, stretches: Stretches | None = None
    ) -> "TokenBatch":
        """A batch in which every position is trained."""
        weights_BS = torch.ones(tokens_BS.shape, dtype=torch.float32)
        return cls(tokens_BS, labels_BS, weights_BS, stretches)

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> "TokenBatch":
        """The batch of a reader's arrays; it shares their memory."""
        length = arrays.tokens_BS.shape[1]
        return cls(
            torch.from_numpy(arrays.tokens_BS),
            torch.from_numpy(arrays.labels_BS),
            torch.from_numpy(arrays.weights_BS),
            None if arrays.starts is None else Stretches.of(arrays.starts, length),
            None if arrays.valid_BS is None else torch.from_numpy(arrays.valid_BS),
            {name: torch.from_numpy(array) for name, array in arrays.extra.items()},
        )

    @property
    def rows(self) -> int:
        return self.tokens_BS.shape[0]

    @property
    def length(self) -> int:
        """Positions of a row."""
        return self.tokens_BS.shape[1]

    def sequences(self, share: Share | None = None) -> Sequences | None:
        """The layout of the rows, or of this rank's share of them, for the model; None where each
        row is one text, held whole."""
        if share is None:
            if self.stretches is None and self.valid_BS is None:
                return None
            return Sequences(stretches=self.stretches, valid_BS=self.valid_BS)
        positions_BS, valid_BS = share.of(self._positions_BS()), share.valid(self.valid_BS)
        if isinstance(share, DocumentShare):
            return Sequences(positions_BS=positions_BS, valid_BS=valid_BS, documents=share.padded)
        if not share.attends:
            assert self.stretches is None, "Transformer Engine would mix documents"
            return Sequences(positions_BS=positions_BS, valid_BS=valid_BS)
        return Sequences(
            stretches=self.stretches,
            positions_BS=positions_BS,
            valid_BS=valid_BS,
            share=share,
            length=self.length,
        )

    def part(self, share: Share) -> "ContextPart":
        """Labels and extras of this rank's share of the rows, for heads."""
        shape = self.tokens_BS.shape
        extra = {n: share.of(x) for n, x in self.extra.items() if x.shape[:2] == shape}
        return ContextPart(share.of(self.labels_BS), extra)

    def _positions_BS(self) -> Tensor:
        """Each place's distance from the start of its text."""
        if self.stretches:
            return self.stretches.positions_BS()
        return torch.arange(self.length, device=self.tokens_BS.device).expand(self.rows, -1)

    @property
    def positions(self) -> Tensor:
        """Number of positions that are not padding, float64."""
        if self.valid_BS is not None:
            return self.valid_BS.sum(dtype=torch.float64)
        count = float(self.tokens_BS.numel())
        return torch.full((), count, dtype=torch.float64, device=self.tokens_BS.device)

    def beyond(self, vocabulary: int) -> Tensor:
        """Number of positions whose token, or trained label, is no id of the vocabulary; float64.
        Filling rows are not counted."""
        tokens_BS, labels_BS = self.tokens_BS, self.labels_BS
        is_no_id_BS = (tokens_BS < 0) | (tokens_BS >= vocabulary)
        is_no_label_BS = (labels_BS < 0) | (labels_BS >= vocabulary)
        found_BS = is_no_id_BS | is_no_label_BS & (self.weights_BS != 0)
        return found_BS[: self.rows - self.filling].sum(dtype=torch.float64)

    def to(self, device: torch.device) -> "TokenBatch":
        filling = self.filling
        return self._map(lambda x: x.to(device, non_blocking=True), lambda x: x.to(device), filling)

    def pinned(self) -> "TokenBatch":
        """A copy in pinned memory, which a GPU reads by itself."""
        return self._map(lambda x: x.pin_memory(), lambda x: x.pinned(), self.filling)

    def split(self, rows: int) -> Iterator["TokenBatch"]:
        """Micro-batches of `rows` sequences, in order."""
        first_filling = self.rows - self.filling
        for start in range(0, self.rows, rows):
            end = min(start + rows, self.rows)
            filling = max(0, end - max(start, first_filling))
            part = methodcaller("of_rows", start, end)
            yield self._map(itemgetter(slice(start, end)), part, filling)

    def padded_to(self, rows: int) -> "TokenBatch":
        """The batch with `rows` sequences: copies of the first one, as padding, fill its end."""
        missing = rows - self.rows
        if not missing:
            return self
        valid_BS = self.valid_BS
        if valid_BS is None:
            valid_BS = torch.ones_like(self.tokens_BS, dtype=torch.bool)

        def pad(x: Tensor) -> Tensor:
            return torch.cat([x, x[:1].expand(missing, *x.shape[1:])])

        filling = self.filling + missing
        padded = replace(self, valid_BS=valid_BS)._map(pad, lambda x: x.padded_to(rows), filling)
        assert padded.valid_BS is not None
        for counted_BS in (padded.weights_BS, padded.valid_BS):
            counted_BS[self.rows :] = 0
        return padded

    def _map(
        self,
        change: Callable[[Tensor], Tensor],
        change_stretches: Callable[[Stretches], Stretches],
        filling: int,
    ) -> "TokenBatch":
        """Apply `change` to every tensor, and `change_stretches` to the stretches."""
        return TokenBatch(
            change(self.tokens_BS),
            change(self.labels_BS),
            change(self.weights_BS),
            None if self.stretches is None else change_stretches(self.stretches),
            None if self.valid_BS is None else change(self.valid_BS),
            {name: change(x) for name, x in self.extra.items()},
            filling,
        )
