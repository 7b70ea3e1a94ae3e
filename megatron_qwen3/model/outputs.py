"""Heads: functions of the last layer's logits, computed on the last stage without storing them.

    outputs = log_probs.compute(logits, batch)     # {"log_prob": [B, S], "log_z": [B, S]}

The last pipeline stage returns `Logits`: hidden states and the output matrix. A head computes a few
numbers per position from them, so that nothing as wide as the vocabulary is stored, sent to another
stage or gathered from the tensor ranks. With model.head = "scalar" the stage returns `Scalars`, for
which `scalar` is the only head. `distributions.py` has heads with more of a distribution, as a
teacher needs.

Legend: B rows, S positions, V vocabulary.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from megatron_qwen3.model.logits import Logits
from megatron_qwen3.model.scalars import Scalars
from megatron_qwen3.settings import ModelConfig

Outputs = dict[str, Tensor]
LastStage = Logits | Scalars


class Labelled(Protocol):
    """The part of a batch that heads need."""

    @property
    def labels_BS(self) -> Tensor: ...

    @property
    def extra(self) -> Mapping[str, Tensor]: ...


class Head(NamedTuple):
    """compute: from Logits or Scalars to float32 or int64 tensors named in `shapes`, [B, S, …]
    each; shapes: the shape after B and S, and the dtype, of each; needs: the extras of the batch
    that it reads, with their shapes after B and S; least_vocabulary: the fewest tokens that the
    model must know; of: the model.head that it needs."""

    compute: Callable[[Any, Labelled], Outputs]
    shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    needs: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    least_vocabulary: int = 1
    of: str = "vocabulary"

    def check(self, batch: Labelled, model: ModelConfig) -> None:
        """ValueError where it cannot be computed; checked before a pass, since only the last stage
        would find out, and leave the others waiting."""
        if self.of != model.head:
            raise ValueError(
                f'{", ".join(self.shapes)}: of a model with model.head = "{self.of}", and this '
                f'one\'s is "{model.head}"'
            )
        if self.least_vocabulary > model.vocab_size:
            raise ValueError(
                f"the {self.least_vocabulary} most probable of {model.vocab_size} tokens; "
                "valid: 1 to all of them"
            )
        for name, rest in self.needs.items():
            wanted = (*batch.labels_BS.shape, *rest)
            if name not in batch.extra or batch.extra[name].shape != wanted:
                given = [*batch.extra[name].shape] if name in batch.extra else "not there"
                raise ValueError(f"extra {name} is {given}; the head needs {[*wanted]}")

    def empty(self, B: int, S: int, device: torch.device) -> Outputs:
        """Tensors of zeros in the shapes of `compute`'s results."""
        return {
            name: torch.zeros(B, S, *rest, dtype=dtype, device=device)
            for name, (rest, dtype) in self.shapes.items()
        }


def _log_probs(logits: Logits, batch: Labelled) -> Outputs:
    scores = logits.scores(batch.labels_BS.t())
    return {"log_prob": scores.log_p.t(), "log_z": scores.log_z.t()}


def _scalar(scalars: Scalars, batch: Labelled) -> Outputs:
    return {"scalar": scalars.values().t()}


NUMBER: tuple[tuple[int, ...], torch.dtype] = ((), torch.float32)

log_probs = Head(_log_probs, {"log_prob": NUMBER, "log_z": NUMBER})
"""log p(label), and log z, the log-sum-exp of the V logits."""

scalar = Head(_scalar, {"scalar": NUMBER}, of="scalar")
"""The output at each position of a model whose model.head is "scalar"."""
