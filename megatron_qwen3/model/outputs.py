"""What is asked of the model's last layer: heads, functions of logits that never leave the stage.

    outputs = log_probs.compute(logits, batch)     # {"log_prob": [B, S], "log_z": [B, S]}

The last pipeline stage hands out `Logits`: hidden states and the matrix that would make logits of
them. A head says which few numbers of each position are wanted, so that nothing as wide as the
vocabulary is kept, sent to another stage or gathered from the tensor ranks.

Legend: B rows, S positions, V vocabulary, k or K ids of each position.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from megatron_qwen3.model.logits import Logits

Outputs = dict[str, Tensor]


class Labelled(Protocol):
    """What heads need of a batch."""

    @property
    def labels_BS(self) -> Tensor: ...

    @property
    def extra(self) -> Mapping[str, Tensor]: ...


class Head(NamedTuple):
    """compute: float32 or int64 tensors of what `shapes` names, each [B, S, …];
    shapes: what follows B and S, and the dtype, known without computing."""

    compute: Callable[[Logits, Labelled], Outputs]
    shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]]

    def empty(self, B: int, S: int, device: torch.device) -> Outputs:
        """Tensors of the shape of what `compute` gives, filled with zeros."""
        return {
            name: torch.zeros(B, S, *rest, dtype=dtype, device=device)
            for name, (rest, dtype) in self.shapes.items()
        }


def _log_probs(logits: Logits, batch: Labelled) -> Outputs:
    scores = logits.scores(batch.labels_BS.t())
    return {"log_prob": scores.log_p.t(), "log_z": scores.log_z.t()}


def _log_probs_and_entropy(logits: Logits, batch: Labelled) -> Outputs:
    scores = logits.scores(batch.labels_BS.t(), with_entropy=True)
    assert scores.entropy is not None
    return {
        "log_prob": scores.log_p.t(),
        "log_z": scores.log_z.t(),
        "entropy": scores.entropy.t(),
    }


_NUMBER: tuple[tuple[int, ...], torch.dtype] = ((), torch.float32)

log_probs = Head(_log_probs, {"log_prob": _NUMBER, "log_z": _NUMBER})
"""log p(label), and log z, the log-sum-exp of the V logits."""

log_probs_and_entropy = Head(
    _log_probs_and_entropy, {"log_prob": _NUMBER, "log_z": _NUMBER, "entropy": _NUMBER}
)
"""As `log_probs`, and -Σ p log p over the vocabulary, in nats."""


def top_k(k: int) -> Head:
    """The k most probable ids of each position, the first the most, and their log p; untrained."""

    def compute(logits: Logits, batch: Labelled) -> Outputs:
        log_p_SBK, ids_SBK = logits.top_k(k)
        return {"log_probs": log_p_SBK.transpose(0, 1), "ids": ids_SBK.transpose(0, 1)}

    return Head(compute, {"log_probs": ((k,), torch.float32), "ids": ((k,), torch.int64)})


def at_ids(k: int) -> Head:
    """log p of k ids of each position, the batch's extra `ids`, int64 [B, S, k]; and log z."""

    def compute(logits: Logits, batch: Labelled) -> Outputs:
        scores = logits.scores(batch.extra["ids"].transpose(0, 1))
        return {"log_probs": scores.log_p.transpose(0, 1), "log_z": scores.log_z.t()}

    return Head(compute, {"log_probs": ((k,), torch.float32), "log_z": _NUMBER})
