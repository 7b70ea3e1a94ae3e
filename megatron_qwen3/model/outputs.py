"""What is asked of the model's last layer: heads, functions of what never leaves the last stage.

    outputs = log_probs.compute(logits, batch)     # {"log_prob": [B, S], "log_z": [B, S]}

The last pipeline stage hands out `Logits`: hidden states and the matrix that would make logits of
them. A head says which few numbers of each position are wanted, so that nothing as wide as the
vocabulary is kept, sent to another stage or gathered from the tensor ranks. With model.head =
"scalar" it hands out `Scalars`, of which the head `scalar` alone can be asked.

Legend: B rows, S positions, V vocabulary, k or K ids of each position.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from megatron_qwen3.model.logits import Logits
from megatron_qwen3.model.scalars import Scalars

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
    shapes: what follows B and S, and the dtype, known without computing."""

    compute: Callable[[Any, Labelled], Outputs]
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


def _scalar(scalars: Scalars, batch: Labelled) -> Outputs:
    return {"scalar": scalars.values().t()}


_NUMBER: tuple[tuple[int, ...], torch.dtype] = ((), torch.float32)

log_probs = Head(_log_probs, {"log_prob": _NUMBER, "log_z": _NUMBER})
"""log p(label), and log z, the log-sum-exp of the V logits."""

log_probs_and_entropy = Head(
    _log_probs_and_entropy, {"log_prob": _NUMBER, "log_z": _NUMBER, "entropy": _NUMBER}
)
"""As `log_probs`, and -Σ p log p over the vocabulary, in nats."""

scalar = Head(_scalar, {"scalar": _NUMBER})
"""The number that a model whose model.head is "scalar" gives of each position."""


def top_k(k: int, temperature: float = 1.0) -> Head:
    """The k most probable ids of each position, the first the most, their log p, and `log_rest`,
    log Σ p over all other ids; untrained. Logits are divided by the temperature."""

    def compute(logits: Logits, batch: Labelled) -> Outputs:
        log_p_SBK, ids_SBK, log_rest_SB = logits.tempered(temperature).top_k(k)
        return {
            "log_probs": log_p_SBK.transpose(0, 1),
            "ids": ids_SBK.transpose(0, 1),
            "log_rest": log_rest_SB.t(),
        }

    shapes = {"log_probs": ((k,), torch.float32), "ids": ((k,), torch.int64), "log_rest": _NUMBER}
    return Head(compute, shapes)


def at_ids(k: int) -> Head:
    """log p of k ids of each position, the batch's extra `ids`, int64 [B, S, k]; and log z."""

    def compute(logits: Logits, batch: Labelled) -> Outputs:
        scores = logits.scores(batch.extra["ids"].transpose(0, 1))
        return {"log_probs": scores.log_p.transpose(0, 1), "log_z": scores.log_z.t()}

    return Head(compute, {"log_probs": ((k,), torch.float32), "log_z": _NUMBER})


def at_ids_and_label(k: int, temperature: float = 1.0) -> Head:
    """As `at_ids` of distinct ids, with `log_rest`, log Σ p over all other ids, and log p(label).

    temperature: by which the logits are divided for the ids and their rest. log p of the label and
    log z are of the plain logits: all come of one pass over them where it is 1, of two else.
    """

    def compute(logits: Logits, batch: Labelled) -> Outputs:
        ids_SBK, label_SB1 = batch.extra["ids"].transpose(0, 1), batch.labels_BS.t().unsqueeze(-1)
        if temperature == 1:
            plain = logits.scores(torch.cat([ids_SBK, label_SB1], -1), rest_of=k)
            log_p_SBK, log_rest_SB = plain.log_p[..., :k], plain.log_rest
        else:
            plain = logits.scores(label_SB1)
            tempered = logits.tempered(temperature).scores(ids_SBK, rest_of=k)
            log_p_SBK, log_rest_SB = tempered.log_p, tempered.log_rest
        assert log_rest_SB is not None
        return {
            "log_probs": log_p_SBK.transpose(0, 1),
            "log_rest": log_rest_SB.t(),
            "log_prob": plain.log_p[..., -1].t(),
            "log_z": plain.log_z.t(),
        }

    numbers = dict.fromkeys(("log_rest", "log_prob", "log_z"), _NUMBER)
    return Head(compute, {"log_probs": ((k,), torch.float32), **numbers})
