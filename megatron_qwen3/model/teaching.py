"""Heads for on-policy distillation on a teacher's ids: the teacher's and the student's.

    answer = top_k_and_label(64).compute(teacher_logits, batch)
    outputs = at_ids_with_entropy(64).compute(student_logits, batch_with_ids)

`divergence.py` has those that compare whole distributions. Legend: k ids of each position, B rows,
S positions.
"""

import torch

from megatron_qwen3.model.distributions import top_k
from megatron_qwen3.model.logits import Logits
from megatron_qwen3.model.outputs import NUMBER, Head, Labelled, Outputs


def top_k_and_label(k: int, temperature: float = 1.0) -> Head:
    """As `top_k`, with log p of the label: two passes over the logits; untrained."""

    def compute(logits: Logits, batch: Labelled) -> Outputs:
        of_label = logits.tempered(temperature).scores(batch.labels_BS.t())
        return top_k(k, temperature).compute(logits, batch) | {"log_prob": of_label.log_p.t()}

    shapes = {**top_k(k).shapes, "log_prob": NUMBER}
    return Head(compute, shapes, least_vocabulary=k)


def at_ids_with_entropy(k: int, temperature: float = 1.0) -> Head:
    """Of logits divided by the temperature: log p of k distinct ids of each position, the batch's
    extra `ids`, log Σ p over all others, log p of the label, and the entropy, in nats."""

    def compute(logits: Logits, batch: Labelled) -> Outputs:
        ids_SBK, label_SB1 = batch.extra["ids"].transpose(0, 1), batch.labels_BS.t().unsqueeze(-1)
        asked = torch.cat([ids_SBK, label_SB1], -1)
        scores = logits.tempered(temperature).scores(asked, with_entropy=True, rest_of=k)
        assert scores.log_rest is not None and scores.entropy is not None
        return {
            "log_probs": scores.log_p[..., :k].transpose(0, 1),
            "log_rest": scores.log_rest.t(),
            "log_prob": scores.log_p[..., -1].t(),
            "entropy": scores.entropy.t(),
        }

    numbers = dict.fromkeys(("log_rest", "log_prob", "entropy"), NUMBER)
    return Head(compute, {"log_probs": ((k,), torch.float32), **numbers}, needs={"ids": (k,)})
