"""What is asked of the model's last layer: heads, functions of what never leaves the last stage.

    outputs = log_probs.compute(logits, batch)     # {"log_prob": [B, S], "log_z": [B, S]}

The last pipeline stage hands out `Logits`: hidden states and the matrix that would make logits of
them. A head says which few numbers of each position are wanted, so that nothing as wide as the
vocabulary is kept, sent to another stage or gathered from the tensor ranks. With model.head =
"scalar" it hands out `Scalars`, of which the head `scalar` alone can be asked. Heads that say more
of a distribution, as a teacher's, are `distributions.py`'s.

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
    """What heads need of a batch."""

    @property
    def labels_BS(self) -> Tensor: ...

    @property
    def extra(self) -> Mapping[str, Tensor]: ...


class Head(NamedTuple):
    """compute: of Logits, or of Scalars, float32 or int64 tensors of what `shapes` names, each
    [B, S, …];
    shapes: what follows B and S, and the dtype, known without computing;
    needs: the batch's extras that it reads, and what follows B and S in their shapes;
    least_vocabulary: how many tokens the model must know at least;
    of: the model.head that it can be asked of."""

    compute: Callable[[Any, Labelled], Outputs]
    shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    needs: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    least_vocabulary: int = 1
    of: str = "vocabulary"

    def check(self, batch: Labelled, model: ModelConfig) -> None:
        """ValueError where it cannot be computed: asked before a pass, since the last stage alone
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
        """Tensors of the shape of what `compute` gives, filled with zeros."""
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
"""The number that a model whose model.head is "scalar" gives of each position."""
