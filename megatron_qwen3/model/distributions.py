"""Heads with more of a distribution than log p of the label: entropy, and log p of several ids.

    outputs = top_k(64).compute(logits, batch)     # {"log_probs": [B, S, 64], "ids": …, "log_rest"}

`outputs.py` explains heads.

Legend: B rows, S positions, V vocabulary, k or K ids of each position.
"""

import torch

from megatron_qwen3.model.logits import Logits
from megatron_qwen3.model.outputs import NUMBER, Head, Labelled, Outputs


def log_probs_and_entropy(temperature: float = 1.0) -> Head:
    """As `log_probs`, and -Σ p log p over the vocabulary, in nats, of logits divided by the
    temperature: the policy that tokens are sampled from."""

    def compute(logits: Logits, batch: Labelled) -> Outputs:
        scores = logits.tempered(temperature).scores(batch.labels_BS.t(), with_entropy=True)
        assert scores.entropy is not None
        return {
            "log_prob": scores.log_p.t(),
            "log_z": scores.log_z.t(),
            "entropy": scores.entropy.t(),
        }

    return Head(compute, dict.fromkeys(("log_prob", "log_z", "entropy"), NUMBER))


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

    shapes = {"log_probs": ((k,), torch.float32), "ids": ((k,), torch.int64), "log_rest": NUMBER}
    return Head(compute, shapes, least_vocabulary=k)


def at_ids(k: int) -> Head:
    """log p of k ids of each position, the batch's extra `ids`, int64 [B, S, k]; and log z."""

    def compute(logits: Logits, batch: Labelled) -> Outputs:
        scores = logits.scores(batch.extra["ids"].transpose(0, 1))
        return {"log_probs": scores.log_p.transpose(0, 1), "log_z": scores.log_z.t()}

    shapes = {"log_probs": ((k,), torch.float32), "log_z": NUMBER}
    return Head(compute, shapes, needs={"ids": (k,)})


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

    numbers = dict.fromkeys(("log_rest", "log_prob", "log_z"), NUMBER)
    shapes = {"log_probs": ((k,), torch.float32), **numbers}
    return Head(compute, shapes, needs={"ids": (k,)})
